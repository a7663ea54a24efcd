package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

const mib = 1 << 20

// shelved makes a shelf with captures of about so many MiB each, an hour apart.
func shelved(t *testing.T, budget int64, sizes ...int) (s *shelf, found *[]engine.Finding) {
	t.Helper()
	root := t.TempDir()
	key, err := evidence.LoadOrCreateKey(root, "host")
	if err != nil {
		t.Fatal(err)
	}
	store, err := evidence.Open(filepath.Join(root, "evidence"), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for i, n := range sizes {
		stream, err := store.Stream(uuid.UUID{byte(1 + i%2)})
		if err == nil {
			_, err = stream.Append(evidence.KindFrame, time.Now(), []byte("a frame"))
		}
		if err == nil {
			_, err = stream.SignHead()
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = bundle.Create(t.Context(), filepath.Join(root, "bundles"), &bundle.Spec{
			Host: "host", VM: uuid.UUID{byte(1 + i%2)}, VMName: "web", Finding: fmt.Sprint("f", i), Order: ordered(fmt.Sprint("f", i)).String(), Stream: stream.Dir(), From: 0, To: 1,
			Timeline: &bundle.Timeline{}, Created: time.Date(2026, 1, 2, i, 0, 0, 0, time.UTC),
			Parts: []bundle.Part{{Path: "memory.elf", Data: []byte(strings.Repeat("x", n*mib))}},
		}, key)
		if err != nil {
			t.Fatal(err)
		}
	}
	found = &[]engine.Finding{}
	return newShelf(filepath.Join(root, "bundles"), budget, func() *evidence.Key { return key }, func(f engine.Finding) { *found = append(*found, f) }), found
}

// ordered is the order of a finding's capture.
func ordered(finding string) uuid.UUID { return uuid.NewSHA1(uuid.Nil, []byte(finding)) }

func names(t *testing.T, s *shelf) string {
	t.Helper()
	all, err := s.list()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range all {
		name := c.manifest.Finding
		if c.pinned {
			name += "*"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func nameOf(t *testing.T, s *shelf, finding string) string {
	t.Helper()
	all, err := s.list()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.manifest.Finding == finding {
			return c.name()
		}
	}
	t.Fatalf("no capture of %s", finding)
	return ""
}

// TestCaptureBudget: room is made by giving up the oldest that are not pinned,
// each with a finding, no more of them than needed; where nobody may give up
// enough none is, and the capture fails for good.
func TestCaptureBudget(t *testing.T) {
	s, found := shelved(t, 10*mib, 2, 2, 2, 2) // a little over 8 MiB
	if _, err := s.setPinned(nameOf(t, s, "f0"), true); err != nil {
		t.Fatal(err)
	}
	one, err := s.promise(uuid.New(), 3*mib)
	if err != nil || names(t, s) != "f0* f2 f3" {
		t.Fatalf("%s, %v", names(t, s), err)
	}
	if len(*found) != 1 || (*found)[0].Rule != "capture/given-up" || (*found)[0].VM != (uuid.UUID{2}) || (*found)[0].Detail["of_finding"] != "f1" {
		t.Errorf("%+v", *found)
	}
	two, err := s.promise(uuid.New(), 3*mib) // beside the first, which is not made yet
	if err != nil || names(t, s) != "f0*" {
		t.Fatalf("%s, %v", names(t, s), err)
	}
	var p interface{ Permanent() bool }
	if _, err := s.promise(uuid.New(), 3*mib); !errors.As(err, &p) || !strings.Contains(err.Error(), "captures.budget is 10 MiB") {
		t.Errorf("a third: %v", err)
	}
	one()
	two()
	if done, err := s.promise(uuid.New(), 3*mib); err != nil || names(t, s) != "f0*" {
		t.Errorf("when they are done: %s, %v", names(t, s), err)
	} else {
		done()
	}
	if _, err := s.setPinned(nameOf(t, s, "f0"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.promise(uuid.New(), 9*mib); err != nil || names(t, s) != "" {
		t.Errorf("unpinned: %s, %v", names(t, s), err)
	}
}

// TestPinnedLeavesTheBundleWhole: a pin is no file of the bundle, outlives the
// process, and names nothing but a capture.
func TestPinnedLeavesTheBundleWhole(t *testing.T) {
	s, _ := shelved(t, 10*mib, 1)
	name := nameOf(t, s, "f0")
	if _, err := s.setPinned(name, true); err != nil {
		t.Fatal(err)
	}
	v, err := evidence.LoadVerifier(filepath.Join(filepath.Dir(s.dir), evidence.PubFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.VerifyProgress(t.Context(), filepath.Join(s.dir, name), v, nil); err != nil {
		t.Error(err)
	}
	again := newShelf(s.dir, 10*mib, s.key, nil) // another process
	if names(t, again) != "f0*" {
		t.Errorf("%s", names(t, again))
	}
	for _, bad := range []string{"", "..", "../evidence", "nothing"} {
		if _, err := s.setPinned(bad, true); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPrune(t *testing.T) {
	two, six := uint64(2), uint64(6*mib)
	for name, c := range map[string]struct {
		w    wish
		left string
	}{
		"before":   {wish{before: time.Date(2026, 1, 2, 2, 0, 0, 0, time.UTC)}, "f0* f2 f3 f4"},
		"keep":     {wish{keep: &two}, "f0* f3 f4"},
		"bytes":    {wish{bytes: &six}, "f0* f4"}, // 2 MiB each and a little more
		"of one":   {wish{vm: uuid.UUID{2}, keep: new(uint64)}, "f0* f2 f4"},
		"together": {wish{keep: &two, before: time.Date(2026, 1, 2, 2, 0, 0, 0, time.UTC)}, "f0* f2 f3 f4"},
		"dry":      {wish{keep: new(uint64), dry: true}, "f0* f1 f2 f3 f4"},
	} {
		t.Run(name, func(t *testing.T) {
			s, found := shelved(t, 100*mib, 2, 2, 2, 2, 2)
			if _, err := s.setPinned(nameOf(t, s, "f0"), true); err != nil {
				t.Fatal(err)
			}
			gone, err := s.prune(c.w)
			if err != nil || names(t, s) != c.left {
				t.Errorf("%s, %v; want %s", names(t, s), err, c.left)
			}
			if !c.w.dry && len(gone) != len(*found) || c.w.dry && (len(gone) != 4 || len(*found) != 0) {
				t.Errorf("%d gone, %d findings", len(gone), len(*found))
			}
		})
	}
}

// archive makes one of a capture, encrypted, and returns its path.
func archive(t *testing.T, s *shelf, finding string) string {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	path, err := bundle.Archive(t.Context(), filepath.Join(s.dir, nameOf(t, s, finding)), s.key(), &bundle.PackOptions{Recipients: []age.Recipient{id.Recipient()}})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestArchivesOnTheShelf: an archive that the host cannot read is a capture as the
// directory was, with the same name and pin, and is given up with its label.
func TestArchivesOnTheShelf(t *testing.T) {
	s, found := shelved(t, 100*mib, 2, 2, 2)
	name := nameOf(t, s, "f0")
	if _, err := s.setPinned(name, true); err != nil {
		t.Fatal(err)
	}
	before, err := s.find(name)
	if err != nil {
		t.Fatal(err)
	}
	path := archive(t, s, "f0")
	archive(t, s, "f1")
	if names(t, s) != "f0* f1 f2" || nameOf(t, s, "f0") != name {
		t.Errorf("%s", names(t, s))
	}
	c, err := s.find(filepath.Base(path))
	if err != nil || c.dir != path || c.bytes != before.bytes || c.disk == 0 || c.disk > mib || c.manifest.VM != before.manifest.VM {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := s.setPinned(filepath.Base(path), false); err != nil || names(t, s) != "f0 f1 f2" {
		t.Errorf("%s, %v", names(t, s), err)
	}
	one := uint64(1)
	if _, err := s.prune(wish{keep: &one}); err != nil || names(t, s) != "f2" || len(*found) != 2 {
		t.Errorf("%s, %v, %v", names(t, s), err, *found)
	}
	if all, _ := filepath.Glob(filepath.Join(s.dir, "*"+bundle.LabelSuffix)); len(all) != 0 {
		t.Errorf("labels left: %q", all)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "x.tar.zst"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if names(t, s) != "f2" {
		t.Errorf("a file without a label is a capture: %s", names(t, s))
	}
}

// TestRoomToPack: older captures make room for the archive, never the capture that
// it is made of; where they cannot, nothing is given up.
func TestRoomToPack(t *testing.T) {
	s, _ := shelved(t, 7*mib, 2, 2, 2) // a little over 6 MiB
	dir := filepath.Join(s.dir, nameOf(t, s, "f0"))
	done, err := s.beside(uuid.New(), dir)
	if err != nil || names(t, s) != "f0 f2" {
		t.Fatalf("%s, %v", names(t, s), err)
	}
	if gone, err := s.prune(wish{keep: new(uint64)}); err != nil || len(gone) != 1 || names(t, s) != "f0" {
		t.Errorf("pruned while it is packed: %s, %v", names(t, s), err)
	}
	done()
	if gone, err := s.prune(wish{keep: new(uint64)}); err != nil || len(gone) != 1 || names(t, s) != "" {
		t.Errorf("pruned: %s, %v", names(t, s), err)
	}
	s, _ = shelved(t, 5*mib, 2, 2)
	if _, err := s.setPinned(nameOf(t, s, "f0"), true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.beside(uuid.New(), filepath.Join(s.dir, nameOf(t, s, "f1"))); !errors.As(err, new(overBudget)) || names(t, s) != "f0* f1" {
		t.Errorf("%s, %v", names(t, s), err)
	}
	if _, err := s.prune(wish{keep: new(uint64)}); err != nil || names(t, s) != "f0*" {
		t.Errorf("it is not packed: %s, %v", names(t, s), err)
	}
}

// TestRoomBesideWhatWasNotPacked: what was taken and never packed takes of the
// budget, and is not given up.
func TestRoomBesideWhatWasNotPacked(t *testing.T) {
	order := uuid.New()
	for _, name := range []string{capturing + order.String(), ".partial-" + order.String() + "-12"} {
		t.Run(name[:5], func(t *testing.T) { roomBeside(t, name, order) })
	}
}

func roomBeside(t *testing.T, name string, order uuid.UUID) {
	s, _ := shelved(t, 7*mib, 2, 2) // a little over 4 MiB
	left := filepath.Join(s.dir, name)
	if err := os.Mkdir(left, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "memory.elf"), []byte(strings.Repeat("x", 3*mib)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.promise(uuid.New(), 5*mib); !errors.As(err, new(overBudget)) || names(t, s) != "f0 f1" {
		t.Errorf("%s, %v", names(t, s), err)
	}
	done, err := s.promise(uuid.New(), mib)
	if err != nil || names(t, s) != "f1" {
		t.Errorf("%s, %v", names(t, s), err)
	}
	done()
	s.promised[order] = 4 * mib // it is under way
	if err := s.makeRoom(0); err != nil || names(t, s) != "f1" {
		t.Errorf("%s, %v", names(t, s), err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Error(err)
	}
}

// TestSweepAfterPacking: the directory that a crash left beside its archive is no
// second capture, and goes at the next start.
func TestSweepAfterPacking(t *testing.T) {
	s, _ := shelved(t, 100*mib, 1)
	dir := filepath.Join(s.dir, nameOf(t, s, "f0"))
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	path := archive(t, s, "f0")
	if err := os.Rename(copied, dir); err != nil {
		t.Fatal(err)
	}
	if c, err := s.find(filepath.Base(dir)); err != nil || c.dir != path || names(t, s) != "f0" {
		t.Errorf("%s, %+v, %v", names(t, s), c, err)
	}
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) || names(t, s) != "f0" {
		t.Errorf("%s, %v", names(t, s), err)
	}
}

// TestSweep: what a crash left of a capture that was given up is no capture, and
// goes at the next start.
func TestSweep(t *testing.T) {
	s, _ := shelved(t, 100*mib, 1)
	if err := os.Rename(filepath.Join(s.dir, nameOf(t, s, "f0")), filepath.Join(s.dir, givenUp+"x")); err != nil {
		t.Fatal(err)
	}
	if names(t, s) != "" {
		t.Error("it is a capture")
	}
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, givenUp+"*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestStopWhilePacking: a capture that a stop of the monitor kept from being packed
// is no finding, and the next one packs it, beside the VM's next orders.
func TestStopWhilePacking(t *testing.T) {
	s, _ := shelved(t, 100*mib, 1)
	store, err := evidence.Open(t.TempDir(), s.key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	c := newCapturer(&Monitor{cfg: &Config{StateDir: filepath.Dir(s.dir), Bundles: Bundles{Form: formArchive}}, store: store, shelf: s, log: slog.New(slog.DiscardHandler)})
	dir, o := filepath.Join(s.dir, nameOf(t, s, "f0")), respond.Order{ID: ordered("f0")}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if path, err := c.Pack(stopped, o); !errors.Is(err, context.Canceled) || path != "" || names(t, s) != "f0" || len(s.promised) != 0 {
		t.Errorf("%q, %v, %s", path, err, names(t, s))
	}
	if path, taken, err := c.Captured(t.Context(), o); err != nil || path != "" || taken.IsZero() {
		t.Errorf("%q, %s, %v", path, taken, err)
	}
	path, err := c.Pack(t.Context(), o)
	if err != nil || path != dir+bundle.ArchiveSuffix || names(t, s) != "f0" {
		t.Errorf("%q, %v, %s", path, err, names(t, s))
	}
	if again, taken, err := c.Captured(t.Context(), o); err != nil || again != path || !taken.IsZero() {
		t.Errorf("%q, %s, %v", again, taken, err)
	}
}
