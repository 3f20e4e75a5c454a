package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

const sealedSize = 4*mib + 512

// sealedChain is a chain of four: plain, sealed with zstd, sealed, plain with zstd; the last on top, as a guest sees
// it.
type sealedChain struct {
	layers []qcow2.Layer // the top first
	want   []byte
}

func newSealedChain(t testing.TB, tool *qcow2.Tool) (c sealedChain) {
	t.Helper()
	dir := t.TempDir()
	c.want = make([]byte, sealedSize)
	for i, kind := range []struct{ secret, compression string }{{"", ""}, {"one", "zstd"}, {"two", ""}, {"", "zstd"}} {
		l := qcow2.Layer{Path: filepath.Join(dir, fmt.Sprintf("layer%d.qcow2", i))}
		target := qcow2.NewTarget{SizeBytes: sealedSize, CompressionType: kind.compression}
		if kind.secret != "" {
			l.Secret = qcow2.NewSecret(kind.secret)
			target.Secret = l.Secret
		}
		if i > 0 {
			target.BackingFile = fmt.Sprintf("layer%d.qcow2", i-1)
		}
		target.File = fresh(t, l.Path)
		fill(t, tool, target, c.want, int64(i)*mib/2, mib, uint64(i)+1)
		c.layers = append([]qcow2.Layer{l}, c.layers...)
	}
	return c
}

// fill writes such data to a target, and to want.
func fill(t testing.TB, tool *qcow2.Tool, target qcow2.NewTarget, want []byte, at, length int64, seed uint64) {
	t.Helper()
	server, client := targetClient(t, tool, target)
	data := half(seed, int(length))
	copy(want[at:], data)
	if err := errors.Join(client.WriteAt(data, at), client.Flush()); err != nil {
		t.Fatal(err)
	}
	client.Disconnect()
	if err := server.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestSealedChain: a chain of plain and sealed layers is read as it was written, by every call that reads one, and its
// files show nothing of what they are.
func TestSealedChain(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	c := newSealedChain(t, tool)
	top, below := c.layers[0], c.layers[1:]
	for i, l := range c.layers {
		h, err := tool.Header(t.Context(), l.Path, l.Secret)
		want := qcow2.Expect{VirtualSizeBytes: sealedSize}
		if i < 3 {
			want.BackingFile = filepath.Base(c.layers[i+1].Path)
		}
		if err = errors.Join(err, h.Validate(want)); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
		if r, err := tool.Check(t.Context(), l.Path, qcow2.CheckOptions{Secret: l.Secret}); err != nil || !r.Whole() ||
			r.AllocatedClusters < 16 {
			t.Errorf("layer %d: %+v, %v", i, r, err)
		}
		raw, err := os.ReadFile(l.Path)
		if err != nil || l.Secret != nil && (bytes.Contains(raw, []byte("layer")) || bytes.Contains(raw, []byte("QFI\xfb"))) {
			t.Errorf("layer %d shows what it is: %v", i, err)
		}
	}
	out := filepath.Join(dir, "out")
	for _, from := range []int{0, 1, 2, 3} { // the chain as it was at each time
		o := qcow2.ConvertOptions{Secret: c.layers[from].Secret, Backing: c.layers[from+1:], TargetFormat: qcow2.FormatRaw}
		if err := tool.Convert(t.Context(), c.layers[from].Path, out, o); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(out); err != nil || from == 0 && !bytes.Equal(got, c.want) || len(got) != sealedSize {
			t.Errorf("from layer %d: what was converted differs, %v", from, err)
		}
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
	extents, err := tool.Map(t.Context(), top.Path, qcow2.MapOptions{Secret: top.Secret, Backing: below})
	var data int64
	for _, x := range extents {
		if x.Data {
			data += x.LengthBytes
		}
	}
	if err != nil || data < 2*mib || data > 3*mib {
		t.Errorf("%d bytes of data are mapped, %v", data, err)
	}
	for i, l := range c.layers {
		info, err := tool.Info(t.Context(), l.Path, qcow2.InfoOptions{Secret: l.Secret})
		below := ""
		if i < 3 {
			below = filepath.Base(c.layers[i+1].Path)
		}
		if err != nil || info.Format != qcow2.FormatQcow2 || info.VirtualSizeBytes != sealedSize ||
			info.BackingFile != below ||
			info.Encrypted != (l.Secret != nil) || info.CompressionType == "" || info.Compat != "1.1" {
			t.Errorf("layer %d: %+v, %v", i, info, err)
		}
	}
	compared(t, tool, c)
	served(t, tool, c)
}

// compared reads the chain beside a plain image, and beside one of its own layers.
func compared(t *testing.T, tool *qcow2.Tool, c sealedChain) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, c.want, 0o600); err != nil {
		t.Fatal(err)
	}
	o := qcow2.CompareOptions{SecretA: c.layers[0].Secret, BackingA: c.layers[1:], FormatB: qcow2.FormatRaw}
	if err := tool.Compare(t.Context(), c.layers[0].Path, raw, o); err != nil {
		t.Errorf("a chain and what it holds: %v", err)
	}
	o = qcow2.CompareOptions{BackingA: c.layers[1:], SecretB: c.layers[1].Secret, BackingB: c.layers[2:]}
	if err := tool.Compare(t.Context(), c.layers[0].Path, c.layers[1].Path, o); !errors.Is(err, qcow2.ErrDifferent) {
		t.Errorf("a chain and the one below: %v", err)
	}
	o = qcow2.CompareOptions{SecretA: c.layers[1].Secret, FormatB: qcow2.FormatRaw}
	if err := tool.Compare(t.Context(), c.layers[1].Path, raw, o); !errors.Is(err, qcow2.ErrInvalidOption) {
		t.Errorf("a sealed image with whatever it names below: %v", err)
	}
}

// TestSealedShared: a sealed chain is served to so many clients at a time as were asked for.
func TestSealedShared(t *testing.T) {
	t.Parallel()
	tool := newTool(t)
	c := newSealedChain(t, tool)
	socket := filepath.Join(t.TempDir(), "s")
	server, err := tool.ServeNBD(t.Context(), qcow2.NBDOptions{Path: c.layers[0].Path, Backing: c.layers[1:],
		Socket: socket, ReadOnly: true, Shared: 2})
	if err != nil {
		t.Fatal(err)
	}
	first, second := dialNBD(t, socket, ""), dialNBD(t, socket, "")
	third, err := dialUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	greeted := func(within time.Duration) bool {
		if err := third.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		_, err := third.Read(make([]byte, 1))
		return err == nil
	}
	if greeted(300 * time.Millisecond) {
		t.Error("a third client is served beside two")
	}
	first.Close()
	if !greeted(30 * time.Second) {
		t.Error("the third client isn't served after the first has gone")
	}
	second.Close()
	if err := errors.Join(third.Close(), server.Close()); err != nil {
		t.Error(err)
	}
}

// served reads the chain over NBD, through descriptors.
func served(t *testing.T, tool *qcow2.Tool, c sealedChain) {
	t.Helper()
	var layers []qcow2.Layer
	for _, l := range c.layers {
		layers = append(layers, qcow2.Layer{Path: qcow2.Descriptor(open(t, l.Path, os.O_RDONLY)), Secret: l.Secret})
	}
	socket := filepath.Join(t.TempDir(), "s")
	o := qcow2.NBDOptions{
		Path: layers[0].Path, Secret: layers[0].Secret, Backing: layers[1:], Socket: socket, ReadOnly: true, ExportName: "x",
	}
	server, err := tool.ServeNBD(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	client := dialNBD(t, socket, "x")
	got := make([]byte, sealedSize)
	err = errors.Join(client.ReadAt(got[:mib], 0), client.ReadAt(got[mib:], mib))
	if err != nil || !bytes.Equal(got, c.want) || !client.ReadOnly() {
		t.Errorf("what was served differs, %v", err)
	}
	client.Close()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	o.ReadOnly = false
	if _, err := tool.ServeNBD(t.Context(), o); !errors.Is(err, qcow2.ErrUnsupported) {
		t.Errorf("a sealed chain is served for writing: %v", err)
	}
}

// TestWrongSecret: the wrong secret, or none, is told from damage, by every call.
func TestWrongSecret(t *testing.T) {
	t.Parallel()
	tool := newTool(t)
	c := newSealedChain(t, tool)
	path, wrong, below := c.layers[1].Path, qcow2.NewSecret("wrong"), c.layers[2:]
	_, header := tool.Header(t.Context(), path, wrong)
	_, check := tool.Check(t.Context(), path, qcow2.CheckOptions{Secret: wrong})
	_, info := tool.Info(t.Context(), path, qcow2.InfoOptions{Secret: wrong})
	_, mapped := tool.Map(t.Context(), path, qcow2.MapOptions{Secret: wrong, Backing: below})
	convert := tool.Convert(t.Context(), path, filepath.Join(t.TempDir(), "out"), qcow2.ConvertOptions{
		Secret: wrong, Backing: below,
	})
	compare := tool.Compare(t.Context(), path, path, qcow2.CompareOptions{
		SecretA: wrong, BackingA: below, SecretB: wrong, BackingB: below,
	})
	for what, err := range map[string]error{"header": header, "check": check, "map": mapped, "convert": convert,
		"info": info, "compare": compare} {
		if !errors.Is(err, qcow2.ErrSecret) || strings.Contains(err.Error(), "wrong") {
			t.Errorf("%s: %v, want ErrSecret", what, err)
		}
	}
	if _, err := tool.Header(t.Context(), path, nil); !errors.Is(err, qcow2.ErrFormat) {
		t.Errorf("a sealed image read as a plain one: %v", err)
	}
	if _, err := tool.Header(t.Context(), c.layers[0].Path, wrong); !errors.Is(err, qcow2.ErrFormat) {
		t.Errorf("a plain image read as a sealed one: %v", err)
	}
}

// TestSecretsReachToolsByPipe: neither arguments nor environment of any tool has a secret, nor what they say.
func TestSecretsReachToolsByPipe(t *testing.T) {
	t.Parallel()
	seen := filepath.Join(t.TempDir(), "seen")
	spy := func(name string) string {
		return script(t, `{ tr '\0' '\n' < /proc/$$/environ; printf '%s\n' "$@"; } >> `+seen+`; exec `+name+` "$@"`)
	}
	tool := newToolWith(t, qcow2.Config{
		QemuImg: spy("qemu-img"), StorageDaemon: spy("qemu-storage-daemon"), Unconfined: true,
	})
	const secret = "5ec4e75ec4e75ec4e75ec4e7"
	l := qcow2.Layer{Path: filepath.Join(t.TempDir(), "sealed"), Secret: qcow2.NewSecret(secret)}
	fill(t, tool, qcow2.NewTarget{File: fresh(t, l.Path), SizeBytes: mib, Secret: l.Secret},
		make([]byte, mib), 0, 64<<10, 1)
	_, err := tool.Check(t.Context(), l.Path, qcow2.CheckOptions{Secret: l.Secret})
	if err == nil {
		err = tool.Convert(t.Context(), l.Path, filepath.Join(t.TempDir(), "out"), qcow2.ConvertOptions{
			Secret: l.Secret, Backing: []qcow2.Layer{},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(seen)
	if err != nil || bytes.Count(text, []byte("--chardev")) < 2 || !bytes.Contains(text, []byte("convert")) ||
		bytes.Contains(text, []byte(secret)) {
		t.Errorf("tools were told: %s, %v", text, err)
	}
}

// TestHostileLUKSHeaders: what a header asks for beyond the limits is refused at once, by every call, before any tool
// runs.
func TestHostileLUKSHeaders(t *testing.T) {
	t.Parallel()
	good := filepath.Join(t.TempDir(), "good")
	secret := qcow2.NewSecret("secret")
	fill(t, newTool(t), qcow2.NewTarget{File: fresh(t, good), SizeBytes: mib, Secret: secret},
		make([]byte, mib), 0, 64<<10, 1)
	image, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	number := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
	}
	text := func(at int, s string) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:at+32], s+strings.Repeat("\x00", 32)); return b }
	}
	noTool := newToolWith(t, qcow2.Config{QemuImg: script(t, "sleep 100"), StorageDaemon: script(t, "sleep 100")})
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"empty":               {func([]byte) []byte { return nil }, qcow2.ErrFormat},
		"cut":                 {func(b []byte) []byte { return b[:500] }, qcow2.ErrLUKS},
		"no payload":          {func(b []byte) []byte { return b[:1<<20] }, qcow2.ErrLUKS},
		"other magic":         {number(0, 0), qcow2.ErrFormat},
		"version 2":           {func(b []byte) []byte { b[7] = 2; return b }, qcow2.ErrTooNew},
		"other cipher":        {text(8, "serpent"), qcow2.ErrLUKS},
		"no cipher":           {text(8, "cipher_null"), qcow2.ErrLUKS},
		"other mode":          {text(40, "ecb"), qcow2.ErrLUKS},
		"other hash":          {text(72, "ripemd160"), qcow2.ErrLUKS},
		"payload at the end":  {number(104, 1<<32-1), qcow2.ErrLUKS},
		"payload in header":   {number(104, 0), qcow2.ErrLUKS},
		"payload in material": {number(104, 100), qcow2.ErrLUKS},
		"huge key":            {number(108, 1<<31), qcow2.ErrLUKS},
		"no key":              {number(108, 0), qcow2.ErrLUKS},
		"digest for hours":    {number(164, 1<<32-1), qcow2.ErrLUKS},
		"digest of none":      {number(164, 0), qcow2.ErrLUKS},
		"slot for hours":      {number(212, 1<<31), qcow2.ErrLUKS},
		"slot of none":        {number(212, 0), qcow2.ErrLUKS},
		"slot unused":         {number(208, 0xdead), qcow2.ErrLUKS},
		"two slots":           {number(256, 0x00ac71f3), qcow2.ErrLUKS},
		"nonsense slot":       {number(256, 7), qcow2.ErrLUKS},
		"material past end":   {number(248, 1<<31), qcow2.ErrLUKS},
		"material in header":  {number(248, 0), qcow2.ErrLUKS},
		"unused past end":     {number(248+48, 1<<31), qcow2.ErrLUKS},
		"many stripes":        {number(252, 1<<31), qcow2.ErrLUKS},
		"no stripes":          {number(252, 0), qcow2.ErrLUKS},
	} {
		path := filepath.Join(t.TempDir(), "hostile")
		if err := os.WriteFile(path, c.change(bytes.Clone(image)), 0o600); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, header := noTool.Header(t.Context(), path, secret)
		_, check := noTool.Check(t.Context(), path, qcow2.CheckOptions{Secret: secret})
		_, mapped := noTool.Map(t.Context(), path, qcow2.MapOptions{Secret: secret, Backing: []qcow2.Layer{}})
		convert := noTool.Convert(t.Context(), path, path+".out", qcow2.ConvertOptions{
			Secret: secret, Backing: []qcow2.Layer{},
		})
		_, serve := noTool.ServeNBD(t.Context(), qcow2.NBDOptions{
			Path: path, Secret: secret, Backing: []qcow2.Layer{}, Socket: path + ".socket", ReadOnly: true,
		})
		for what, err := range map[string]error{"header": header, "check": check, "map": mapped, "convert": convert,
			"serve": serve} {
			if !errors.Is(err, c.want) {
				t.Errorf("%s, %s: %v, want %v", name, what, err, c.want)
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: refused after %v", name, took)
		}
	}
}

func dialNBD(t testing.TB, socket, export string) *nbd.Client {
	t.Helper()
	conn, err := dialUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	client, err := nbd.Open(t.Context(), conn, nbd.Options{Export: export})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// TestManySealedLayers: a chain of 30 opens within 3 s.
func TestManySealedLayers(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	want := make([]byte, mib)
	var layers []qcow2.Layer
	for i := range 30 {
		l := qcow2.Layer{
			Path: filepath.Join(dir, fmt.Sprintf("l%d", i)), Secret: qcow2.NewSecret(fmt.Sprintf("secret %d", i)),
		}
		target := qcow2.NewTarget{File: fresh(t, l.Path), SizeBytes: mib, Secret: l.Secret, CompressionType: "zstd"}
		if i > 0 {
			target.BackingFile = fmt.Sprintf("l%d", i-1)
		}
		fill(t, tool, target, want, rand.Int64N(15)<<16, 64<<10, uint64(i)) //nolint:gosec // test data
		layers = append([]qcow2.Layer{l}, layers...)
	}
	began := time.Now()
	socket := filepath.Join(dir, "s")
	server, err := tool.ServeNBD(t.Context(), qcow2.NBDOptions{
		Path: layers[0].Path, Secret: layers[0].Secret, Backing: layers[1:], Socket: socket, ReadOnly: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("30 layers in %v", took)
	if took > 3*time.Second {
		t.Errorf("30 sealed layers were opened in %v", took)
	}
	got := make([]byte, mib)
	client := dialNBD(t, socket, "")
	if err := client.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was read differs, %v", err)
	}
	client.Close()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}
