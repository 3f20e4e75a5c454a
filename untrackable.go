package kvmbackup

import (
	"fmt"
	"strings"
)

// WhyUntrackable says why a disk can't have a bitmap, with the way out; empty: it can.
func (d DiskStatus) WhyUntrackable() string {
	image := "IMAGE"
	if strings.HasPrefix(d.Source, "/") {
		image = shellWord(d.Source)
	}
	switch {
	case d.Untrackable == "":
		return ""
	case d.Encryption != "":
		return fmt.Sprintf("%s of %s is encrypted (%s) and can't keep bitmaps", d.Untrackable, d.Device, d.Encryption)
	case d.Format == "qcow2":
		return fmt.Sprintf("%s of %s can't keep bitmaps; while the VM is off make it version 3: qemu-img amend -f "+
			"qcow2 -o compat=1.1 %s",
			d.Untrackable, d.Device, image)
	}
	return fmt.Sprintf("%s of %s can't keep bitmaps, qcow2 can; while the VM is off convert it, "+
		"and let the definition name the new image: qemu-img convert -f %s -O qcow2 %s NEW", d.Untrackable, d.Device,
		d.Untrackable, image)
}

// shellWord quotes a path for a command line that is only shown, where it needs that.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
