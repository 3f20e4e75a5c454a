package repository_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// recipeChain is a plain full and a sealed incremental.
func recipeChain() []kvmbackup.Backup {
	full, inc := shapeOfFull(), shapeOfIncremental()
	full.Volumes, inc.Volumes = full.Volumes[:1], inc.Volumes[:1]
	for _, b := range []*kvmbackup.Backup{&full, &inc} {
		b.KeyIDs = []string{"age1first", "age1second"}
		b.Volumes[0].FileEncryption = kvmbackup.EncryptionLUKS
	}
	inc.Files = []kvmbackup.SideFile{{Name: repository.DomainXMLName + repository.SealedSuffix}}
	return []kvmbackup.Backup{full, inc}
}

// TestRecipeIsDocumented: the format's page has the recipe as it is printed.
func TestRecipeIsDocumented(t *testing.T) {
	recipe, err := repository.Recipe(recipeChain())
	want(t, err)
	page, err := os.ReadFile("../docs/format.md")
	want(t, err)
	if !strings.Contains(string(page), "```sh\n"+recipe+"```\n") {
		t.Errorf("docs/format.md doesn't have:\n%s", recipe)
	}
}

// TestRecipeObeysNoRecord: a text of a record is no command, in a comment neither, and leads to no other folder.
func TestRecipeObeysNoRecord(t *testing.T) {
	chain := recipeChain()
	top := &chain[1]
	for what, text := range map[string]*string{
		"VM": (*string)(&top.VM), "volume": (*string)(&top.Volumes[0].VolumeID), "device": &top.Volumes[0].Device,
		"key": &top.KeyIDs[0], "path": &top.Path, "file": &top.Volumes[0].File, "side file": &top.Files[0].Name,
	} {
		before := *text
		*text = path.Dir(before) + "/x\nobey #" + path.Base(before)
		chain[0].Volumes[0].VolumeID = top.Volumes[0].VolumeID
		recipe, err := repository.Recipe(chain)
		*text = before
		if named := what != "VM" && what != "key" && what != "volume"; named {
			if !errors.Is(err, kvmbackup.ErrInvalid) {
				t.Errorf("a recipe with the %s elsewhere: %v\n%s", what, err, recipe)
			}
			continue
		}
		want(t, err)
		tools, said, err := cook(t, recipe, foldersOf(t, recipeChain()), "# secret of the images: 00")
		if err != nil || strings.Contains(tools, "obey") || !strings.Contains(tools, "qemu-img") {
			t.Errorf("%s: ran %q, said %s, %v", what, tools, said, err)
		}
	}
}

// TestRecipeStops: without a manifest, or a key that the identity opens, nothing is opened with no secret.
func TestRecipeStops(t *testing.T) {
	chain := recipeChain()
	recipe, err := repository.Recipe(chain)
	want(t, err)
	lost := foldersOf(t, chain)
	want(t, os.Remove(filepath.Join(lost, path.Base(chain[0].Path), repository.ManifestName)))
	empty := foldersOf(t, chain)
	want(t, os.WriteFile(filepath.Join(empty, path.Base(chain[0].Path), repository.ManifestName), nil, 0o600))
	for what, c := range map[string]struct{ dir, key, says string }{
		"no manifest": {lost, "# secret of the images: 00", path.Base(chain[0].Path) + "/backup.json"},
		"a manifest without": {empty, "# secret of the images: 00",
			"identity opens no key of " + path.Base(chain[0].Path)},
		"an identity of others": {foldersOf(t, chain), "", "identity opens no key of " + path.Base(chain[0].Path)},
	} {
		tools, said, err := cook(t, recipe, c.dir, c.key)
		if err == nil || !strings.Contains(said, c.says) || strings.Contains(tools, "qemu") {
			t.Errorf("%s: ran %q, said %s, %v", what, tools, said, err)
		}
	}
}

// foldersOf makes a VM's folder with manifests that have nothing but a wrapped key.
func foldersOf(t *testing.T, chain []kvmbackup.Backup) string {
	t.Helper()
	dir := t.TempDir()
	for _, b := range chain {
		folder := filepath.Join(dir, path.Base(b.Path))
		want(t, os.Mkdir(folder, 0o700))
		want(t, os.WriteFile(filepath.Join(folder, repository.ManifestName), []byte("      \"wrapped\": \"AAAA\"\n"), 0o600))
	}
	return dir
}

// cook runs a recipe with tools that do nothing but say so, and an age that opens every key as this text, or none.
func cook(t *testing.T, recipe, dir, key string) (ran, said string, err error) {
	t.Helper()
	bin, out := t.TempDir(), t.TempDir()
	for _, tool := range []string{"age", "qemu-img", "qemu-storage-daemon", "obey"} {
		script := "#!/bin/sh\necho ${0##*/} >> \"$RAN\"\n"
		if tool == "age" {
			script += "echo \"$KEY\"\n[ -n \"$KEY\" ]\n"
		}
		want(t, os.WriteFile(filepath.Join(bin, tool), []byte(script), 0o700))
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", recipe, "recipe", out, "identity")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "RAN="+filepath.Join(bin, "ran"), "KEY="+key)
	text, err := cmd.CombinedOutput()
	tools, rerr := os.ReadFile(filepath.Join(bin, "ran"))
	if !errors.Is(rerr, fs.ErrNotExist) {
		want(t, rerr)
	}
	return string(tools), string(text), err
}

// TestRecipeOfOddChains: plain volumes need nothing but qemu-img, names can't leave their words, and no chain is
// refused.
func TestRecipeOfOddChains(t *testing.T) {
	plain := []kvmbackup.Backup{shapeOfFull(), shapeOfIncremental()}
	plain[1].Volumes[0].Device, plain[1].Volumes[0].File = "v'; rm -r x; '", "a b$(c)"
	recipe, err := repository.Recipe(plain)
	want(t, err)
	for _, line := range []string{
		`qemu-img convert -W -m 16 -f qcow2 -O qcow2 '2026.11.23.07.04.50.001/a b$(c)' "$out/"'v'\''; rm -r x; '\''.qcow2'`,
		`qemu-img convert -W -m 16 -f qcow2 -O qcow2 2026.11.23.07.04.50.001/datadisk.v2.qcow2 "$out/"v2.qcow2`,
	} {
		if !strings.Contains(recipe, line+"\n") {
			t.Errorf("%q isn't in\n%s", line, recipe)
		}
	}
	if strings.Contains(recipe, "age") || strings.Contains(recipe, "qemu-storage-daemon") {
		t.Errorf("a plain chain needs:\n%s", recipe)
	}
	for _, chain := range [][]kvmbackup.Backup{nil, plain[1:]} {
		if _, err := repository.Recipe(chain); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("a recipe for no chain: %v", err)
		}
	}
}
