package offline

import (
	"log/slog"
	"time"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Config is what Images needs beside the tools. It is copied.
type Config struct {
	// Logger gets each step at Debug and what was survived at Warn. Defaults to discarding.
	Logger *slog.Logger
	// ProgressInterval is the time between two calls of Wait's progress function. Defaults to 1 s.
	ProgressInterval time.Duration
}

// Images works on the image files of stopped domains. It is safe for concurrent use.
type Images struct {
	tool *qcow2.Tool
	cfg  Config
	log  *slog.Logger
}

// New returns an Images that uses the tools.
func New(tool *qcow2.Tool, cfg Config) *Images {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ProgressInterval == 0 {
		cfg.ProgressInterval = time.Second
	}
	return &Images{tool: tool, cfg: cfg, log: cfg.Logger}
}

// Disk is one disk of a stopped domain.
type Disk struct {
	Device string // the target, e.g. vda
	Path   string // absolute path of a file or block device; empty: it has none, as a network disk
	Format string // as the domain's definition has it: qcow2, raw, ...
	// Description stands for the source in a DiskStatus. Defaults to Path.
	Description string
	Serial      string
	Encryption  string   // as the domain's definition has it, e.g. luks; empty: none, unless the image itself says so
	Shareable   bool     // the domain's definition says that other domains may have it too
	Skip        string   // why it is never backed up; the image of such a disk is not opened
	SkipsData   bool     // as in a DiskStatus
	Below       []string // the files that the domain's definition names below Path, top first: libvirt starts with these
	// BelowFormats are the formats that the definition gives those files, in the same order; empty: it gives none.
	BelowFormats []string
	Ends         bool // the definition says that nothing is below those; otherwise the lowest says itself what is
}

func (d Disk) describe() string {
	if d.Description != "" {
		return d.Description
	}
	return d.Path
}

// formatBelow is the format that the definition gives the i-th file below the image, if it is that one; empty: it gives
// none.
func (d Disk) formatBelow(i int, path string) qcow2.Format {
	if i >= len(d.Below) || i >= len(d.BelowFormats) || !SameFile(d.Below[i], path) {
		return ""
	}
	return qcow2.Format(d.BelowFormats[i])
}
