package qcow2_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestSecretNeverPrints: whichever way a secret, or options that have one, is printed, it isn't there.
func TestSecretNeverPrints(t *testing.T) {
	secret := qcow2.NewSecret("5ec4e7")
	layer := qcow2.Layer{Path: "x", Secret: secret}
	var out bytes.Buffer
	for _, v := range []any{secret, *secret, layer, &layer,
		qcow2.ConvertOptions{Secret: secret, Backing: []qcow2.Layer{layer}}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			fmt.Fprintf(&out, verb, v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
	}
	b, err := json.Marshal(layer)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	if text := out.String(); strings.Contains(text, "5ec4e7") || strings.Contains(text, fmt.Sprintf("%x", "5ec4e7")) {
		t.Errorf("the secret is in %s", text)
	}
}
