package repository

import (
	"context"
	"io/fs"
	"os"
	"sync"
)

// kept is a root that is open for several calls.
type kept struct {
	mu   sync.Mutex
	open []*os.Root  // the last is in use
	info fs.FileInfo // of that; nil before
	over bool
}

// keptKey is the key of a context's kept root of a repository.
type keptKey struct{ repo *Repository }

// Keep returns a context for several calls, which then open the root and read the marker once: the first that needs it
// does, and the others use what it has opened, as long as the folder is still the one of that name. The root stays
// open until release, also while a call was left behind. A context that has one already is returned as it is.
func (r *Repository) Keep(ctx context.Context) (_ context.Context, release func()) {
	if ctx.Value(keptKey{r}) != nil {
		return ctx, func() {}
	}
	k := &kept{}
	return context.WithValue(ctx, keptKey{r}, k), k.release
}

// keptRoot is nil in a context without one.
func (r *Repository) keptRoot(ctx context.Context) *kept {
	k, _ := ctx.Value(keptKey{r}).(*kept)
	return k
}

// use returns the open root if it is the folder that was found now.
func (k *kept) use(found fs.FileInfo) *os.Root {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over || k.info == nil || !os.SameFile(k.info, found) {
		return nil
	}
	return k.open[len(k.open)-1]
}

// give leaves a root to the calls that follow, and says whether it did: it is too late after release.
func (k *kept) give(root *os.Root) bool {
	info, err := root.Stat(".")
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over || err != nil {
		return false
	}
	k.open, k.info = append(k.open, root), info
	return true
}

func (k *kept) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, root := range k.open {
		_ = root.Close() // nothing was written through it
	}
	k.open, k.info, k.over = nil, nil, true
}

// reuse has the session use the kept root, if there is one that is still the folder of that name.
func (s *session) reuse() (bool, error) {
	if s.kept == nil {
		return false, nil
	}
	err := s.read("stat", "", func() error {
		found, err := os.Stat(s.repo.root)
		if err == nil {
			s.root = s.kept.use(found)
		}
		return nil //nolint:nilerr // it is opened again, and that says what is wrong
	})
	s.lent = s.root != nil
	return s.lent, err
}
