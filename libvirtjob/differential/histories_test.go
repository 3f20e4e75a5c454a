package differential_test

import (
	"strings"
	"testing"
)

// histories are written down; each begins with a running guest with two disks that hold something. play_test.go has the steps.
var histories = map[string]string{
	"everyday": `backup; write vda 1 2; scribble sda 3; backup; zero vda 0 2; backup; backup; write vda 4; backup; delete 0; delete 4;
		backup; delete 1 force; backup full; backup off; write sda 2; backup`,
	"restarts": `backup; write vda 1; restart; write sda 2; backup; stop; start; backup; write vda 2; crash; start; backup; write vda 7; backup;
		crash; start; write vda 1; backup; write sda 1; backup`,
	"restarts-transient": `transient; backup; write vda 1; restart; write sda 2; backup; stop; start; backup; write vda 2; crash; start; backup;
		restart; write vda 7; backup`,
	"stopped": `backup; write vda 1; stop; backup; start; write vda 2; backup; write sda 5; stop; backup offline; backup offline; start;
		write vda 3; backup; crash; backup offline; start; backup`,
	"stopped-transient": `transient; backup; write vda 1; stop; backup; start; write vda 2; backup; write sda 5; stop; backup offline;
		backup offline; start; write vda 3; backup; crash; backup offline; start; backup`,
	"disks": `backup; detach sda; write vda 1; backup; attach sda; write sda 1; backup; backup; detach sda; replace sda; write sda 2; backup;
		write sda 3; backup; restart; backup`,
	"grown-and-mixed": `grow vda 104; backup; lose-bitmap vda; backup`,
	"grown": `backup; grow vda 100; write vda 8; backup; grow sda 256; write sda 7 3; backup; restart; grow vda 28; backup;
		crash; start; grow vda 28; backup; grow vda 28; backup`,
	"snapshots": `backup; write vda 1; snapshot vda; write vda 2; backup; write vda 3; commit vda; write vda 4; backup; snapshot sda; write sda 1;
		restart; write sda 2; backup; commit sda; backup`,
	"snapshots-twice": `backup; write vda 1; snapshot vda; write vda 2; snapshot vda; write vda 3; crash; start; backup; commit vda; backup; commit vda; backup`,
	"snapshots-grown": `backup; write vda 1; snapshot vda; write vda 2; grow vda 98; write vda 3; backup; write vda 4; backup; restart; write vda 1; backup;
		crash; start; backup; write vda 5; backup`,
	"snapshots-grown-transient": `transient; backup; snapshot vda; grow vda 98; restart; write vda 3; backup; write vda 4; backup; stop; backup offline;
		start; backup`,
	"snapshots-restored":  `backup; write vda 4; snapshot vda; write vda 1; stop; restore 0; start; backup; commit vda; stop; restore 0; start; backup`,
	"snapshots-merged":    `snapshot vda; backup; write vda 1; restart; commit vda; crash; start; backup`,
	"snapshots-transient": `transient; backup; snapshot vda; write vda 2; stop; backup offline; start; write vda 3; commit vda; restart; backup`,
	"meddled": `backup; write vda 1; lose-metadata; write vda 2; backup; write sda 1; lose-checkpoint; write vda 3; backup; write vda 4; lose-bitmap sda;
		write sda 5; backup; backup`,
	"foreign": `foreign-checkpoint vda; foreign-bitmap sda; backup; write vda 1; backup; write vda 2; backup other; write vda 3; backup; backup other;
		foreign-bitmap vda; foreign-checkpoint sda; restart; backup; backup other; crash; start; backup; backup other; stop;
		foreign-bitmap vda; backup offline; start; backup`,
	"forgotten": `backup; write vda 1; forget; backup; write vda 2; require-full; backup; write vda 3; backup; stop; forget; backup; start; backup`,
	"cancelled": `backup cancel; backup; write vda 1; backup cancel; write vda 2; backup abort; write vda 3; backup; restart; backup abort; backup;
		stop; backup cancel; backup offline cancel; start; backup`,
	"slow": `big; backup slow halfway; backup slow lost=Begin; recover; write vda 1 4; backup full slow halfway; backup full slow lost=Begin; write sda 0;
		backup`,
	"restored": `foreign-bitmap sda; backup; write vda 1 2; backup; write sda 2; backup other; restore 0; stop; restore 0; backup; start; backup;
		write vda 3; backup; backup other; grow sda 256; write vda 4; backup; stop; restore 1; restore 3; start; write sda 6; backup;
		write vda 5; backup; crash; restore 0; start; backup; detach sda; stop; restore 0; start; backup`,
	"restored-transient": `transient; foreign-bitmap sda; backup; write vda 1 2; backup; write sda 2; backup other; stop; restore 0; backup offline; start;
		backup; write vda 3; backup; backup other; grow sda 256; snapshot vda; write vda 4; backup; stop; restore 1; restore 3; start; write sda 6;
		backup; snapshot vda; write vda 5; backup; commit vda; backup; crash; restore 0; start; backup`,
	"paused": `backup quiesce; write vda 1; resume; write vda 2; backup; pause; backup; resume; write sda 3; backup quiesce; restart; backup; resume; crash; start;
		backup; resume; stop; backup quiesce`,
	"full-target": `backup full-target; backup; write vda 1; backup full-target; write vda 2; backup; backup full-target; resume; write sda 1 3;
		backup full-target; backup; zero vda 0 2; backup full-target; backup; stop; backup full-target; backup offline full-target; start; backup`,
	"given-up": `backup lost=CreatePartial; recover; backup lost=Begin; recover; backup lost=Publish; recover; write vda 1; backup lost=Complete; recover;
		write vda 2; backup lost=PrepareJob; write vda 3; backup; write vda 4; backup lost=Begin; write sda 5; backup; write vda 6; backup lost=Wait;
		write vda 1; backup; write vda 2; backup lost=Publish; write vda 3; backup`,
	"given-up-restarts": `backup; write vda 1; backup lost=Begin; write vda 2; restart; write vda 3; recover; backup; write vda 2; backup lost=Complete; crash;
		recover; start; backup; backup lost=Publish; stop; recover; start; backup; write vda 4; backup lost=Wait; crash; start; backup`,
	"given-up-stopped": `backup; write vda 1; stop; backup lost=Begin; backup offline lost=PrepareJob; recover; backup offline lost=Begin; backup offline; start;
		write vda 2; stop; backup offline lost=Wait; start; write vda 3; backup; stop; backup lost=Publish; start; backup; stop;
		backup offline lost=Complete; start; backup`,
	"given-up-transient": `transient; backup; write vda 1; backup lost=Begin; write vda 2; restart; write vda 3; recover; backup; stop;
		backup offline lost=Begin; recover; backup offline lost=Publish; start; backup; backup lost=Wait; stop; recover; start; backup`,
}

func TestHistories(t *testing.T) {
	for name, text := range histories {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			compared, diff := playBoth(t, steps(text))
			t.Logf("%d steps compared", compared)
			if diff != "" {
				t.Error(diff)
			}
		})
	}
}

// steps takes a table's entry apart.
func steps(text string) []string {
	var out []string
	for line := range strings.SplitSeq(text, ";") {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}
