package engine

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Restored is what Restore has written.
type Restored struct {
	Backup  kvmbackup.Backup // JSON has its ID
	Volumes []RestoredVolume
}

type restoredJSON struct {
	Backup  kvmbackup.BackupID `json:"backup"`
	Volumes []RestoredVolume   `json:"volumes"`
}

// MarshalJSON writes the backup's ID and the volumes.
func (r Restored) MarshalJSON() ([]byte, error) {
	return json.Marshal(restoredJSON{r.Backup.ID, r.Volumes})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Restored) UnmarshalJSON(b []byte) error {
	var has restoredJSON
	err := json.Unmarshal(b, &has)
	*r = Restored{kvmbackup.Backup{ID: has.Backup}, has.Volumes}
	return err
}

// String returns what was written as lines for people.
func (r Restored) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "restored %s of %s\n", r.Backup.Path, r.Backup.VM)
	for _, v := range r.Volumes {
		fmt.Fprintf(&s, "  %s\n", v)
	}
	return s.String()
}

// RestoredVolume is one volume's target.
type RestoredVolume struct {
	VolumeID    kvmbackup.VolumeID `json:"volume_id"`
	Device      string             `json:"device"` // in the backup
	Path        string             `json:"path"`
	Format      qcow2.Format       `json:"format"`
	VirtualSize int64              `json:"virtual_size"` // bytes of the volume; a block device may be larger
	// Encryption is the kind of encryption that the disk had on its host when it was backed up; what is written has
	// none. Empty: none.
	Encryption string `json:"encryption,omitempty"`
}

// String returns the volume as one line.
func (v RestoredVolume) String() string {
	s := fmt.Sprintf("%s (%s): %s, %s of %d bytes", v.VolumeID, v.Device, v.Path, v.Format, v.VirtualSize)
	if v.Encryption != "" {
		s += fmt.Sprintf("; it was encrypted on its host (%s) and is not now", v.Encryption)
	}
	return s
}

func restored(b kvmbackup.Backup, jobs []copyJob) Restored {
	r := Restored{Backup: b}
	for _, j := range jobs {
		r.Volumes = append(r.Volumes, j.out)
	}
	return r
}
