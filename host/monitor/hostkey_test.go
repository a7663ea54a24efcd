package monitor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// rotating are the steps that a monitor comes to only where somebody has its key
// rotated.
var rotating = []failpoint.Point{failpoint.NextKey, failpoint.Rotated, failpoint.Renamed, failpoint.Untold}

// pinned is the host's key as somebody took it along: without what follows it.
func (h *host) pinned() note.Verifier {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.root, "state", evidence.PubFile))
	if err != nil {
		h.t.Fatal(err)
	}
	v, err := evidence.ParseVerifier(b)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// keyedBy holds every stream against the pinned key and what follows it, and that
// its last head is the present key's, who signs nothing of before.
func (h *host) keyedBy(pinned note.Verifier) {
	h.t.Helper()
	v, err := evidence.FollowFile(pinned, filepath.Join(h.root, "state", evidence.KeysFile))
	if err != nil {
		h.t.Fatal(err)
	}
	present := h.pinned()
	store := filepath.Join(h.root, "state", evidence.StoreDir)
	ids, err := evidence.Streams(store)
	if err != nil || len(ids) != 2 {
		h.t.Fatalf("streams %v, %v", ids, err)
	}
	for _, id := range ids {
		dir := evidence.StreamDir(store, id)
		if rep, err := evidence.Verify(dir, v); err != nil || rep.Unsigned != 0 {
			h.t.Errorf("%+v, %v", rep, err)
		}
		var last []byte
		err := evidence.NewReader(dir).Read(0, 1<<63, func(r *evidence.Record) error {
			if r.Kind == evidence.KindHead {
				last = append(last[:0], r.Payload...)
			}
			return nil
		})
		if err != nil {
			h.t.Fatal(err)
		}
		if _, err := evidence.OpenHead(last, present); err != nil {
			h.t.Errorf("the last head of %s is not the present key's: %v", id, err)
		}
	}
}

// rotationsTold counts the notes of rotations on the host's own record.
func (h *host) rotationsTold() (all []string) {
	h.t.Helper()
	dir := evidence.StreamDir(filepath.Join(h.root, "state", evidence.StoreDir), [16]byte{})
	err := evidence.NewReader(dir).Read(0, 1<<63, func(r *evidence.Record) error {
		if r.Kind == evidence.KindNote && strings.Contains(string(r.Payload), "host-key-rotated") {
			all = append(all, string(r.Payload))
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

// TestRotateKeyWhileItRuns: the key is replaced under a session that goes on, twice;
// it is on record who asked, and a rotation while no monitor runs is as well.
func TestRotateKeyWhileItRuns(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	pinned := h.pinned()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	for n := uint64(1); n <= 2; n++ {
		before := h.pinned()
		r, err := h.api.RotateKey(t.Context(), &apipb.RotateKeyRequest{Reason: "case 4711"})
		if err != nil || r.Number != n || !strings.HasPrefix(r.OldKey, before.Name()+"+") || r.KeysFile != filepath.Join(h.root, "state", evidence.KeysFile) {
			t.Fatalf("%v, %v", r, err)
		}
		s, err := h.api.Status(t.Context(), &apipb.StatusRequest{})
		if err != nil || s.HostKey != r.NewKey {
			t.Errorf("%v, %v", s, err)
		}
		send(t, a, opened("/etc/hosts"))
	}
	if r, err := evidence.RotateKey(filepath.Join(h.root, "state"), time.Now()); !errors.Is(err, evidence.ErrInUse) {
		t.Errorf("past it: %+v, %v", r, err)
	}
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.keyedBy(pinned)
	told := h.rotationsTold()
	if len(told) != 2 || !strings.Contains(told[1], "rotation 2 at ") || !strings.Contains(told[0], `for \"case 4711\"`) {
		t.Errorf("on record: %q", told)
	}
	if _, err := evidence.RotateKey(filepath.Join(h.root, "state"), time.Now()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h.start()
		if err := h.end(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if told := h.rotationsTold(); len(told) != 3 || !strings.Contains(told[2], "rotation 3 at ") {
			t.Errorf("on record: %q", told)
		}
	}
}

// killedRotating kills the monitor while its key is replaced: the next one has the
// old key or the new one, whole, verifies what either has signed, and the rotation
// is on record once where it came about.
func killedRotating(t *testing.T, p failpoint.Point) {
	h := newMortal(t)
	h.start()
	pinned := h.pinned()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	h.arm(p)
	if r, err := h.api.RotateKey(t.Context(), &apipb.RotateKeyRequest{}); err == nil {
		t.Fatalf("%v", r)
	}
	h.died(p)
	h.verifyCut()
	h.start()
	send(t, a, opened("/etc/hosts"))
	want := 1
	if p == failpoint.NextKey { // nobody had signed for it
		want = 0
	}
	if now := h.pinned(); (now.KeyHash() != pinned.KeyHash()) != (want == 1) {
		t.Errorf("the key is %s+%08x, it was %s+%08x", now.Name(), now.KeyHash(), pinned.Name(), pinned.KeyHash())
	}
	if r, err := h.api.RotateKey(t.Context(), &apipb.RotateKeyRequest{}); err != nil || r.Number != uint64(want)+1 {
		t.Errorf("again: %v, %v", r, err)
	}
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.keyedBy(pinned)
	if told := h.rotationsTold(); len(told) != want+1 {
		t.Errorf("on record: %q", told)
	}
	if left, _ := filepath.Glob(filepath.Join(h.root, "state", "host.key.*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}
