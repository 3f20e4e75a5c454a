package repository

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// Recipe returns a script for bash that restores the newest backup of a chain, which begins with its full, without this
// library: with age, qemu-storage-daemon and qemu-img. It is run in the VM's folder, and writes the disks as
// DEVICE.qcow2, with the side files of a sealed backup, to the folder that is its argument. Nothing is read for it.
// ErrInvalid for records that are no chain, or have names that no file can have.
func Recipe(chain []kvmbackup.Backup) (string, error) {
	if len(chain) == 0 {
		return "", fmt.Errorf("%w: a chain without a backup", kvmbackup.ErrInvalid)
	}
	if err := recipeNames(chain); err != nil {
		return "", err
	}
	r := recipe{chain: chain, top: chain[len(chain)-1], keys: map[kvmbackup.BackupID]int{}}
	var disks strings.Builder
	for i, v := range r.top.Volumes {
		if err := r.disk(&disks, i, v); err != nil {
			return "", err
		}
	}
	var s strings.Builder
	r.head(&s)
	r.secrets(&s)
	s.WriteString(disks.String())
	r.sideFiles(&s)
	return s.String(), nil
}

// recipeNames refuses names that would lead out of the folders: a record is no more to be trusted than its database.
func recipeNames(chain []kvmbackup.Backup) error {
	for _, b := range chain {
		names := []string{folderOf(b)}
		for _, v := range b.Volumes {
			names = append(names, v.File, diskName(v))
		}
		for _, f := range b.Files {
			names = append(names, f.Name)
		}
		for _, name := range names {
			if err := kvmbackup.ValidFileName(name); err != nil {
				return fmt.Errorf("%w: backup %s: %w", kvmbackup.ErrInvalid, b.ID, err)
			}
		}
	}
	return nil
}

// diskName is the file that a volume is restored to.
func diskName(v kvmbackup.VolumeBackup) string {
	return cmp.Or(v.Device, string(v.VolumeID)) + ".qcow2"
}

// recipe is one that is being written.
type recipe struct {
	chain []kvmbackup.Backup
	top   kvmbackup.Backup
	keys  map[kvmbackup.BackupID]int // the number of each data key that is needed
}

func sealedVolume(v kvmbackup.VolumeBackup) bool { return v.FileEncryption != "" }

func folderOf(b kvmbackup.Backup) string { return path.Base(b.Path) }

func (r *recipe) head(s *strings.Builder) {
	fmt.Fprintf(s, "# Restores backup %s of %s. Run it with bash in the VM's folder of the repository.\n",
		folderOf(r.top), kvmbackup.Printable(quoted(string(r.top.VM))))
	s.WriteString("set -eu\numask 077\nout=${1:?where to}\n")
	if len(r.keys) == 0 && len(r.top.KeyIDs) == 0 {
		return
	}
	s.WriteString(`identity=${2:?a file with an age identity}
work=$(mktemp -d /dev/shm/restore.XXXXXX) # memory: no secret reaches a disk
trap 'cat "$work"/*.pid 2>/dev/null | while read -r pid; do kill "$pid"; done; rm -r "$work"' EXIT
`)
}

// secrets unwraps the data keys. Each manifest has one per recipient, and age opens those that are for the identity.
func (r *recipe) secrets(s *strings.Builder) {
	if len(r.top.KeyIDs) > 0 {
		r.key(r.top)
	}
	if len(r.keys) == 0 {
		return
	}
	s.WriteString(`
# The data keys: each backup.json has its own, wrapped for every recipient.
unwrap() { # FOLDER NUMBER
  [ -r "$1/backup.json" ] || { echo "no $1/backup.json here: is this the VM's folder?" >&2; exit 1; }
  sed -n 's/^ *"wrapped": "\([^"]*\)".*/\1/p' "$1/backup.json" | while read -r key; do
    base64 -d <<< "$key" | age -d -i "$identity" > "$work/$2.key" 2> /dev/null && break
  done || true
  grep -qs '^# secret of the images: .' "$work/$2.key" || { echo "$identity opens no key of $1" >&2; exit 1; }
}
secret() { # NUMBER FILE: an image's own, which no other of the backup has
  printf '%s %s\n' "$(sed -n 's/^# secret of the images: //p' "$work/$1.key")" "$2" | sha256sum | head -c 64
}
`)
	for _, b := range r.chain {
		if n, ok := r.keys[b.ID]; ok {
			fmt.Fprintf(s, "unwrap %s %d # for one of: %s\n", quoted(folderOf(b)), n,
				kvmbackup.Printable(strings.Join(b.KeyIDs, " ")))
		}
	}
}

// key is the number of a backup's data key.
func (r *recipe) key(b kvmbackup.Backup) int {
	n, ok := r.keys[b.ID]
	if !ok {
		n = len(r.keys)
		r.keys[b.ID] = n
	}
	return n
}

// recipeLayer is one file of a disk.
type recipeLayer struct {
	backup kvmbackup.Backup
	volume kvmbackup.VolumeBackup
}

// layers are the files of one disk, its full first.
func (r *recipe) layers(id kvmbackup.VolumeID) (layers []recipeLayer, err error) {
	for _, b := range slices.Backward(r.chain) {
		v, ok := b.Volume(id)
		if !ok {
			break
		}
		if layers = append(layers, recipeLayer{b, v}); v.Kind == kvmbackup.KindFull {
			slices.Reverse(layers)
			return layers, nil
		}
	}
	return nil, fmt.Errorf("%w: the chain of backup %s has no full of volume %s", kvmbackup.ErrInvalid, r.top.ID, id)
}

func (r *recipe) disk(s *strings.Builder, i int, v kvmbackup.VolumeBackup) error {
	layers, err := r.layers(v.VolumeID)
	if err != nil {
		return err
	}
	name := quoted(diskName(v))
	fmt.Fprintf(s, "\n# The disk %s: %s.\n", quoted(v.Device), kvmbackup.Printable(string(v.VolumeID)))
	if !slices.ContainsFunc(layers, func(l recipeLayer) bool { return sealedVolume(l.volume) }) {
		fmt.Fprintf(s, "qemu-img convert -W -m 16 -f qcow2 -O qcow2 %s \"$out/\"%s\n",
			quoted(folderOf(r.top)+"/"+v.File), name)
		return nil
	}
	for n, l := range layers {
		if sealedVolume(l.volume) {
			fmt.Fprintf(s, "secret %d %s > \"$work/%d.%d\"\n", r.key(l.backup), quoted(l.volume.File), i, n)
		}
	}
	fmt.Fprintf(s, "qemu-storage-daemon --daemonize --pidfile \"$work/%d.pid\" \\\n", i)
	for n, l := range layers {
		if sealedVolume(l.volume) {
			fmt.Fprintf(s, "  --object secret,id=k%d,file=\"$work/%d.%d\" \\\n", n, i, n)
		}
		node, err := json.Marshal(l.node(n))
		if err != nil {
			return err
		}
		fmt.Fprintf(s, "  --blockdev %s \\\n", quoted(string(node)))
	}
	fmt.Fprintf(s, "  --nbd-server addr.type=unix,addr.path=\"$work/%d.nbd\" --export "+
		"nbd,id=disk,node-name=l%d,name=disk\n", i, len(layers)-1)
	fmt.Fprintf(s, "qemu-img convert -W -m 16 -f raw -O qcow2 \"nbd+unix:///disk?socket=$work/%d.nbd\" \"$out/\"%s\n",
		i, name)
	return nil
}

// recipeNode is a block node as QEMU takes it. The order of the fields is for who reads it.
type recipeNode struct {
	Driver    string      `json:"driver"`
	Name      string      `json:"node-name,omitempty"`
	ReadOnly  bool        `json:"read-only"`
	KeySecret string      `json:"key-secret,omitempty"`
	Filename  string      `json:"filename,omitempty"`
	File      *recipeNode `json:"file,omitempty"`
}

// recipeImage has no name of a layer below that a header gives: it is the one before, or none.
type recipeImage struct {
	recipeNode
	Backing *string `json:"backing"`
}

// node is the n-th file of a disk over the one before. Links in the headers are not followed.
func (l recipeLayer) node(n int) recipeImage {
	file := &recipeNode{Driver: "file", ReadOnly: true, Filename: folderOf(l.backup) + "/" + l.volume.File}
	if sealedVolume(l.volume) {
		file = &recipeNode{Driver: "luks", ReadOnly: true, KeySecret: fmt.Sprintf("k%d", n), File: file}
	}
	image := recipeImage{recipeNode: recipeNode{Driver: "qcow2", Name: fmt.Sprintf("l%d", n), ReadOnly: true, File: file}}
	if n > 0 {
		below := fmt.Sprintf("l%d", n-1)
		image.Backing = &below
	}
	return image
}

// sideFiles opens those of a sealed backup: their key is the data key, which is an identity.
func (r *recipe) sideFiles(s *strings.Builder) {
	for i, f := range r.top.Files {
		name, sealed := strings.CutSuffix(f.Name, SealedSuffix)
		if !sealed {
			continue
		}
		if i == 0 {
			s.WriteString("\n# What was saved beside the disks.\n")
		}
		fmt.Fprintf(s, "age -d -i \"$work/%d.key\" %s > \"$out/\"%s\n", r.keys[r.top.ID],
			quoted(folderOf(r.top)+"/"+f.Name), quoted(name))
	}
}

// quoted is a word for the shell.
func quoted(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("._-/+", c))
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
