package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		dir := t.TempDir()
		st, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		// The suite uses a second instance for its races, as another process would.
		open := func() (kvmbackup.Store, error) { return Open(dir) }
		return storetest.Harness{Store: st, Open: open}
	}, storetest.Parallel())
}

// TestFolderNames: the folder's name is no file pattern.
func TestFolderNames(t *testing.T) {
	for _, name := range []string{"[a-z]", "[", "*", "?", `a\b`} {
		st, err := Open(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range storetest.Rules() {
			if rule.Name != "read/unchanged" {
				continue
			}
			if err := rule.Check(t.Context(), storetest.Harness{Store: st}); err != nil {
				t.Errorf("in a folder called %s: %v", name, err)
			}
		}
	}
}

// TestVMNames: whatever a VM is called, its records are its own, and found.
func TestVMNames(t *testing.T) {
	st, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	names := []kvmbackup.VMID{"*", "?", "[a-z]", "[", `a\b`, "a", "a%2Fb", ".", "..", "ä", "vm-", "vm-.json", "lock"}
	for _, vm := range names {
		l, err := st.AcquireLease(t.Context(), vm, "test", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.SetActive(t.Context(), l, kvmbackup.CheckpointName("of "+vm)); err != nil {
			t.Fatal(err)
		}
	}
	found := map[kvmbackup.VMID]bool{}
	states, err := st.all(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range states {
		found[state.VM.VM] = state.VM.ActiveCheckpoint == kvmbackup.CheckpointName("of "+state.VM.VM)
	}
	for _, vm := range names {
		if v, err := st.VM(t.Context(), vm); err != nil || !found[vm] ||
			v.ActiveCheckpoint != kvmbackup.CheckpointName("of "+vm) {
			t.Errorf("VM %q: %+v, %v; found in the folder: %v", vm, v, err, found[vm])
		}
	}
}

// TestFolderGone: a folder that isn't there is an error, and not a store without backups.
func TestFolderGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	st, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if list, err := st.List(t.Context(), kvmbackup.Query{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v and %v, want the folder's error", list, err)
	}
}

// TestFileDamaged: a damaged file is an error that names its VM, to readers and writers, and stays as it is.
func TestFileDamaged(t *testing.T) {
	st, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(st.file("vm [1]"), []byte(`{"vm": {`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errRead := st.List(t.Context(), kvmbackup.Query{})
	_, errWrite := st.AcquireLease(t.Context(), "vm [1]", "test", time.Minute)
	for _, err := range []error{errRead, errWrite} {
		if err == nil || !strings.Contains(err.Error(), "vm [1]") {
			t.Errorf("got %v, want an error that names the VM", err)
		}
	}
	if data, err := os.ReadFile(st.file("vm [1]")); err != nil || string(data) != `{"vm": {` {
		t.Errorf("the file is %q now, %v", data, err)
	}
}
