package kvmbackup_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestTransferOfFormerRecords: a record without a way says nothing of it, in JSON and as details.
func TestTransferOfFormerRecords(t *testing.T) {
	b := kvmbackup.Backup{Transfer: kvmbackup.TransferPush}
	text, err := json.Marshal(b)
	lab.OK(t, err)
	if !strings.Contains(string(text), `"transfer":"push"`) {
		t.Errorf("the way isn't in %s", text)
	}
	former := strings.Replace(string(text), `"transfer":"push",`, "", 1)
	b = kvmbackup.Backup{}
	lab.OK(t, json.Unmarshal([]byte(former), &b))
	if b.Transfer != kvmbackup.TransferAuto || len(former) == len(text) {
		t.Errorf("%v from %s", b.Transfer, former)
	}
	if _, ok := b.Details()["kvmbackup.transfer"]; ok {
		t.Error("a way that isn't known is among the details")
	}
}
