package executortest

import (
	"context"
	"strings"
)

// history is a scripted life of a domain and its backups. It begins with a running guest with two disks that hold
// something. play.go has the steps.
type history struct{ name, text, steps string }

var histories = []history{
	{"everyday", "Full and incremental backups copy exactly what the guest wrote and discarded; a deletion, a forced " +
		"full and the switched-off feature leave the checkpoints that still count.", `
		backup; write vda 1 2; scribble sda 3; backup; zero vda 0 2; backup; backup; write vda 4; backup; delete 0; delete 4;
		backup; delete 1 force; backup full; backup off; write sda 2; backup`},
	{"restarts", "Bitmaps outlive a clean end of QEMU, and a killed one leaves them inconsistent, which Inspect says: " +
		"the next backup is full, and none is wrong.", `
		backup; write vda 1; restart; write sda 2; backup; stop; start; backup; write vda 2; crash; start; backup;
		write vda 7; backup; crash; start; write vda 1; backup; write sda 1; backup`},
	{"restarts-transient", "So they do on a domain that the hypervisor forgets whenever it stops: RegisterCheckpoint " +
		"makes known again what the images still have.", `
		transient; backup; write vda 1; restart; write sda 2; backup; stop; start; backup; write vda 2; crash; start; backup;
		restart; write vda 7; backup`},
	{"stopped", "A stopped domain is served on its image files by the same methods, full and incremental, and its " +
		"bitmaps go on with the guest.", `
		backup; write vda 1; stop; backup; start; write vda 2; backup; write sda 5; stop; backup offline; backup offline;
		start; write vda 3; backup; crash; backup offline; start; backup`},
	{"stopped-transient", "So is one that only its reference describes.", `
		transient; backup; write vda 1; stop; backup; start; write vda 2; backup; write sda 5; stop; backup offline;
		backup offline; start; write vda 3; backup; crash; backup offline; start; backup`},
	{"sealed", "Sealed backups are taken of a stopped domain, and by pull of a running one, full and incremental, " +
		"between plain ones; a push is an ErrUnsupported, and leaves nothing.", `
		backup; write vda 1; stop; backup offline sealed; backup offline sealed; start; write vda 2; backup sealed; backup;
		write sda 5 2; stop; backup offline sealed; backup offline; restore 1; backup offline sealed; start; write vda 3;
		backup sealed; zero sda 0 2; backup sealed; crash; start; backup sealed`},
	{"compared", "What no bitmap can tell is compared with the parent's files, where CanCompare says so: what differs " +
		"is copied, and the bitmaps go on. With digests they are those of what the disks hold.", `
		backup compare digests; write vda 1 2; zero sda 0 2; crash; start; backup compare digests; write vda 4;
		backup compare digests; stop; backup compare digests; start; write sda 3; grow vda 104; lose-bitmap vda;
		backup compare; write vda 2; backup check; crash; backup compare digests; start; restart; write vda 0;
		backup compare digests`},
	{"compared-sealed", "So they are where backups are sealed: with the parents' files where the host has their keys, " +
		"and else with an index under its own key, by which whole pieces are stored; one that isn't known is stored, too.", `
		wide; index-key; backup sealed long; write vda 1; crash; backup offline sealed compare long; keys gone; start;
		write vda 4 4; write sda 5; crash; backup sealed compare long; start; write vda 7; backup sealed compare long;
		scribble vda 7; stop; backup offline sealed compare long; zero vda 4 4; lose-bitmap vda; start; restart;
		backup sealed compare long; write sda 4; backup sealed check long; keys back; scribble vda 1; crash; start;
		backup sealed compare long; write vda 0; backup offline compare long; write vda 3; crash; keys gone; start;
		backup compare long; grow sda 104; restart; backup sealed check long; crash; start; backup sealed check compare`},
	{"disks", "Disks that are unplugged, plugged in again and exchanged between two backups are seen, and each bitmap " +
		"stays with its image.", `
		backup; detach sda; write vda 1; backup; attach sda; write sda 1; backup; backup; detach sda; replace sda;
		write sda 2; backup; write sda 3; backup; restart; backup`},
	{"grown-and-mixed", "A disk that was grown and lost its bitmap is a full beside an incremental, in one job.", `
		grow vda 104; backup; lose-bitmap vda; backup`},
	{"grown", "A disk that was grown has what was added in its next incremental, in sizes that are no whole clusters " +
		"too.", `
		backup; grow vda 100; write vda 8; backup; grow sda 256; write sda 7 3; backup; restart; grow vda 28; backup; crash;
		start; grow vda 28; backup; grow vda 28; backup`},
	{"snapshots", "After an external snapshot each layer has a part of the bitmap; the parts count together, and a " +
		"commit merges them.", `
		backup; write vda 1; snapshot vda; write vda 2; backup; write vda 3; commit vda; write vda 4; backup; snapshot sda;
		write sda 1; restart; write sda 2; backup; commit sda; backup`},
	{"snapshots-twice", "So they do over two snapshots and a kill of QEMU.", `
		backup; write vda 1; snapshot vda; write vda 2; snapshot vda; write vda 3; crash; start; backup; commit vda; backup;
		commit vda; backup`},
	{"snapshots-grown", "A disk that was grown over a snapshot is backed up whole, with what its layers have.", `
		backup; write vda 1; snapshot vda; write vda 2; grow vda 98; write vda 3; backup; write vda 4; backup; restart;
		write vda 1; backup; crash; start; backup; write vda 5; backup`},
	{"snapshots-grown-transient", "So is a transient domain's, running and stopped.", `
		transient; backup; snapshot vda; grow vda 98; restart; write vda 3; backup; write vda 4; backup; stop;
		backup offline; start; backup`},
	{"snapshots-restored", "A restore over a disk with snapshots leaves nothing of the layers' bitmaps that counts.", `
		backup; write vda 4; snapshot vda; write vda 1; stop; restore 0; start; backup; commit vda; stop; restore 0; start;
		backup`},
	{"snapshots-merged", "A commit into an image without the bitmap doesn't pass a part of it for the whole.", `
		snapshot vda; backup; write vda 1; restart; commit vda; crash; start; backup`},
	{"snapshots-transient", "A transient domain's snapshots are found below what its reference describes.", `
		transient; backup; snapshot vda; write vda 2; stop; backup offline; start; write vda 3; commit vda; restart;
		backup`},
	{"meddled", "Checkpoints, their metadata and their bitmaps may vanish between two backups: what is lost is said, " +
		"and nothing else is lost with it.", `
		backup; write vda 1; lose-metadata; write vda 2; backup; write sda 1; lose-checkpoint; write vda 3; backup;
		write vda 4; lose-bitmap sda; write sda 5; backup; backup`},
	{"foreign", "Other programs' checkpoints and bitmaps are never touched, and stand in nobody's way; two consumers " +
		"keep theirs apart.", `
		foreign-checkpoint vda; foreign-bitmap sda; backup; write vda 1; backup; write vda 2; backup other; write vda 3;
		backup; backup other; foreign-bitmap vda; foreign-checkpoint sda; restart; backup; backup other; crash; start;
		backup; backup other; stop; foreign-bitmap vda; backup offline; start; backup`},
	{"forgotten", "After DropCheckpoint of all that is ours nothing of it is left, running or stopped.", `
		backup; write vda 1; forget; backup; write vda 2; require-full; backup; write vda 3; backup; stop; forget; backup;
		start; backup`},
	{"cancelled", "A job that is aborted is gone, with its checkpoint dropped; the parent's bitmaps have lost nothing " +
		"by it.", `
		backup cancel; backup; write vda 1; backup cancel; write vda 2; backup abort; write vda 3; backup; restart;
		backup abort; backup; stop; backup cancel; backup offline cancel; start; backup`},
	{"slow", "A job is aborted half way; one whose process is gone is adopted, followed to its end, and proved.", `
		big; backup slow halfway; backup slow lost=Begin; recover; write vda 1 4; backup full slow halfway;
		backup full slow lost=Begin; write sda 0; backup`},
	{"restored", "After a restore over its disks the next backup of a domain is full, and others' bitmaps are only " +
		"lost with an image.", `
		foreign-bitmap sda; backup; write vda 1 2; backup; write sda 2; backup other; restore 0; stop; restore 0; backup;
		start; backup; write vda 3; backup; backup other; grow sda 256; write vda 4; backup; stop; restore 1; restore 3;
		start; write sda 6; backup; write vda 5; backup; crash; restore 0; start; backup; detach sda; stop; restore 0; start;
		backup`},
	{"restored-transient", "So it is for a transient domain with snapshots.", `
		transient; foreign-bitmap sda; backup; write vda 1 2; backup; write sda 2; backup other; stop; restore 0;
		backup offline; start; backup; write vda 3; backup; backup other; grow sda 256; snapshot vda; write vda 4; backup;
		stop; restore 1; restore 3; start; write sda 6; backup; snapshot vda; write vda 5; backup; commit vda; backup; crash;
		restore 0; start; backup`},
	{"paused", "A paused domain is backed up like a running one; Freeze and Thaw say that it can't answer, and Resume " +
		"lets it run.", `
		backup quiesce; write vda 1; resume; write vda 2; backup; pause; backup; resume; write sda 3; backup quiesce;
		restart; backup; resume; crash; start; backup; resume; stop; backup quiesce`},
	{"full-target", "A job whose target runs full is ErrJobFailed with ErrNoSpace, and neither job, checkpoint nor " +
		"pause is left of it.", `
		backup full-target; backup; write vda 1; backup full-target; write vda 2; backup; backup full-target; resume;
		write sda 1 3; backup full-target; backup; zero vda 0 2; backup full-target; backup; stop; backup full-target;
		backup offline full-target; start; backup`},
	{"given-up", "Whatever a process leaves that dies after any call, AdoptJob and DropCheckpoint find and settle it.", `
		backup lost=CreatePartial; recover; backup lost=Begin; recover; backup lost=Publish; recover; write vda 1;
		backup lost=Complete; recover; write vda 2; backup lost=PrepareJob; write vda 3; backup; write vda 4;
		backup lost=Begin; write sda 5; backup; write vda 6; backup lost=Wait; write vda 1; backup; write vda 2;
		backup lost=Publish; write vda 3; backup; backup lost=Begin; write vda 1; backup`},
	{"given-up-restarts", "So they do when the domain has ended or started again meanwhile.", `
		backup; write vda 1; backup lost=Begin; write vda 2; restart; write vda 3; recover; backup; write vda 2;
		backup lost=Complete; crash; recover; start; backup; backup lost=Publish; stop; recover; start; backup; write vda 4;
		backup lost=Wait; crash; start; backup`},
	{"given-up-stopped", "So they do for the job of a stopped domain, which ends with its process.", `
		backup; write vda 1; stop; backup lost=Begin; backup offline lost=PrepareJob; recover; backup offline lost=Begin;
		backup offline; start; write vda 2; stop; backup offline lost=Wait; start; write vda 3; backup; stop;
		backup lost=Publish; start; backup; stop; backup offline lost=Complete; start; backup`},
	{"given-up-transient", "So they do for a transient domain.", `
		transient; backup; write vda 1; backup lost=Begin; write vda 2; restart; write vda 3; recover; backup; stop;
		backup offline lost=Begin; recover; backup offline lost=Publish; start; backup; backup lost=Wait; stop; recover;
		start; backup`},
}

// historyRules are one per history.
func historyRules() (rules []Rule) {
	for _, h := range histories {
		steps := Steps(h.steps)
		rules = append(rules, Rule{
			Name: "history/" + h.name, Text: h.text + " The steps: " + strings.Join(steps, "; "), abilities: abilitiesOf(steps),
			check: func(ctx context.Context, w World) error {
				_, err := Play(ctx, w, steps...)
				return err
			},
		})
	}
	return rules
}

// Steps takes a history apart whose steps are separated by semicolons.
func Steps(history string) []string {
	var out []string
	for line := range strings.SplitSeq(history, ";") {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			out = append(out, line)
		}
	}
	return out
}
