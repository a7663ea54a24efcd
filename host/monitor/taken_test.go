package monitor

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/respond"
)

// TestTaken: what was taken is found whole wherever a killed process has moved it
// to, and what is not whole, or may not be, is not taken for it.
func TestTaken(t *testing.T) {
	var dir, partial string
	shot := &domain.Snapshot{Name: "web"}
	setUp := func(t *testing.T) {
		t.Helper()
		root := t.TempDir()
		dir, partial = filepath.Join(root, ".capture-1"), filepath.Join(root, ".partial-1")
		shot.Files = nil
		if err := errors.Join(os.Mkdir(dir, 0o711), os.MkdirAll(filepath.Join(partial, "disks"), 0o700)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"memory.elf", "disk-vda.qcow2"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
			shot.Files = append(shot.Files, domain.File{Path: path})
		}
		if err := keepTaken(dir, shot); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		do   func() error
		want string // of the error; "": it is found, "none": it is not there
	}{
		"whole":        {func() error { return nil }, ""},
		"moved":        {func() error { return os.Rename(shot.Files[1].Path, filepath.Join(partial, "disks", "vda.qcow2")) }, ""},
		"gone":         {func() error { return os.Remove(shot.Files[0].Path) }, "not whole"},
		"another's":    {func() error { return os.WriteFile(filepath.Join(dir, takenName), []byte("{}"), 0o600) }, "not what was written"},
		"another boot": {func() error { return replace(filepath.Join(dir, takenName), `"boot":"`, `"boot":"x`) }, "the host went down"},
		"not written":  {func() error { return os.Remove(filepath.Join(dir, takenName)) }, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			setUp(t)
			if err := c.do(); err != nil {
				t.Fatal(err)
			}
			got, err := readTaken(dir, []string{partial})
			switch {
			case c.want == "none":
				if got != nil || err != nil {
					t.Errorf("%+v, %v", got, err)
				}
			case c.want != "":
				if got != nil || err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%+v, %v", got, err)
				}
			case err != nil || got.Name != "web":
				t.Errorf("%+v, %v", got, err)
			}
			if c.want != "" {
				return
			}
			if b, err := os.ReadFile(shot.Files[1].Path); err != nil || string(b) != "disk-vda.qcow2" {
				t.Errorf("%q, %v", b, err)
			}
			if _, err := os.Stat(partial); errors.Is(err, fs.ErrNotExist) != (name == "moved") {
				t.Errorf("the partial bundle: %v", err)
			}
		})
	}
}

// TestLeftovers: a capture that nobody is going to pack any more is told of at each
// start, and not one whose order goes on.
func TestLeftovers(t *testing.T) {
	state := t.TempDir()
	journal, err := respond.OpenJournal(filepath.Join(state, "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	var said bytes.Buffer
	m := &Monitor{cfg: &Config{StateDir: state}, journal: journal, log: slog.New(slog.NewTextHandler(&said, nil))}
	c := newCapturer(m)
	order := func() respond.Order {
		o := respond.Order{ID: uuid.Must(uuid.NewV7()), VM: uuid.New(), Kind: respond.Capture, Given: time.Now()}
		if err := errors.Join(os.MkdirAll(c.dir(o), 0o711), keepTaken(c.dir(o), &domain.Snapshot{})); err != nil {
			t.Fatal(err)
		}
		return o
	}
	pending, failed, unknown := order(), order(), order()
	if err := journal.Restore([]respond.Entry{{Order: pending}, {Order: failed, Result: &respond.Result{Order: failed.ID, Status: respond.Failed}}}); err != nil {
		t.Fatal(err)
	}
	half := func(o respond.Order) string { return filepath.Join(m.bundleDir(), ".partial-"+o.ID.String()+"-12") }
	for _, o := range []respond.Order{pending, failed} { // killed while memory was moved into the bundle
		if err := os.Mkdir(half(o), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	m.leftovers()
	for dir, want := range map[string]bool{
		c.dir(pending): false, c.dir(failed): true, c.dir(unknown): true, half(pending): false, half(failed): true,
	} {
		if got := strings.Contains(said.String(), dir); got != want {
			t.Errorf("told of %s: %t: %s", dir, got, said.String())
		}
	}
}

// TestWatchers: who waits for a VM's capture is told until that is over, whoever
// else waits for another of the same VM.
func TestWatchers(t *testing.T) {
	c, vm := newCapturer(nil), uuid.New()
	heard := func(to *[]uint64) func(*apipb.Progress) {
		return func(p *apipb.Progress) { *to = append(*to, p.Done) }
	}
	var one, two, other []uint64
	first, second, third := c.watch(vm, heard(&one)), c.watch(vm, heard(&two)), c.watch(uuid.New(), heard(&other))
	c.tell(vm, "pack memory", 1, 3)
	first()
	c.tell(vm, "memory", 2, 3)
	second()
	c.tell(vm, "memory", 3, 3)
	third()
	if !slices.Equal(one, []uint64{1}) || len(two) == 0 || two[len(two)-1] != 2 || len(other) != 0 {
		t.Errorf("told %v, %v and %v", one, two, other)
	}
}

// TestWatcherThatDoesNotRead holds nobody up, and hears the newest when it does.
func TestWatcherThatDoesNotRead(t *testing.T) {
	c, vm := newCapturer(nil), uuid.New()
	reads := make(chan struct{})
	var heard []uint64
	stop := c.watch(vm, func(p *apipb.Progress) { <-reads; heard = append(heard, p.Done) })
	for i := range uint64(1000) {
		c.tell(vm, "memory", i, 1000)
	}
	close(reads)
	stop()
	if n := len(heard); n == 0 || n > 3 || heard[n-1] != 999 {
		t.Errorf("heard %v", heard)
	}
}

func replace(path, before, after string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.Replace(string(b), before, after, 1)), 0o600)
}
