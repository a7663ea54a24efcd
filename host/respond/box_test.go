package respond

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var vm1, vm2 = uuid.MustParse("11111111-1111-4111-8111-111111111111"), uuid.MustParse("22222222-2222-4222-8222-222222222222")

// box is a machine, a capturer and a recorder in memory, with a log of calls.
type box struct {
	mu       sync.Mutex
	paused   map[uuid.UUID]bool
	calls    []string
	journal  *Journal
	pause    func(ctx context.Context, vm uuid.UUID) error // in place of the effect
	resume   func(ctx context.Context, vm uuid.UUID) error
	capture  func(ctx context.Context, o Order) (string, error)
	pack     func(ctx context.Context, o Order) (string, error)
	bundles  map[uuid.UUID]string
	taken    map[uuid.UUID]time.Time
	useless  error           // what was taken is
	down     map[string]bool // links of every VM; those of links are there
	links    []string
	off      bool
	setLinks func(macs []string, up bool) error // in place of the effect
	reset    func() error
	told     func(ctx context.Context, o Order) (string, error)
	busy     map[uuid.UUID]int
	saved    map[string]bool
	saveErr  error
	overlap  bool
	recErr   error
}

func newBox(j *Journal) *box {
	return &box{paused: map[uuid.UUID]bool{}, journal: j, bundles: map[uuid.UUID]string{}, taken: map[uuid.UUID]time.Time{}, down: map[string]bool{}, saved: map[string]bool{}, busy: map[uuid.UUID]int{}}
}

func (b *box) say(format string, a ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, fmt.Sprintf(format, a...))
}

func (b *box) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.calls, "; ")
}

func (b *box) set(vm uuid.UUID, paused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.paused[vm] = paused
}

func (b *box) enter(vm uuid.UUID) func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy[vm]++; b.busy[vm] > 1 {
		b.overlap = true
	}
	return func() { b.mu.Lock(); b.busy[vm]--; b.mu.Unlock() }
}

func (b *box) Pause(ctx context.Context, vm uuid.UUID) error {
	defer b.enter(vm)()
	b.say("pause")
	b.mu.Lock()
	pause := b.pause
	b.mu.Unlock()
	if pause != nil {
		return pause(ctx, vm)
	}
	b.set(vm, true)
	return nil
}

func (b *box) Resume(ctx context.Context, vm uuid.UUID) error {
	defer b.enter(vm)()
	b.say("resume")
	if b.resume != nil {
		return b.resume(ctx, vm)
	}
	b.set(vm, false)
	return nil
}

func (b *box) Paused(_ context.Context, vm uuid.UUID) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.paused[vm], nil
}

func (b *box) LinksUp(context.Context, uuid.UUID) (up []string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, mac := range b.links {
		if !b.down[mac] {
			up = append(up, mac)
		}
	}
	return up, nil
}

func (b *box) SetLinks(_ context.Context, vm uuid.UUID, macs []string, up bool) error {
	defer b.enter(vm)()
	b.say("links %v %t", macs, up)
	if b.setLinks != nil {
		if err := b.setLinks(macs, up); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, mac := range macs {
		b.down[mac] = !up
	}
	return nil
}

func (b *box) Reset(_ context.Context, vm uuid.UUID) error {
	defer b.enter(vm)()
	b.say("reset")
	if b.reset != nil {
		return b.reset()
	}
	return nil
}

func (b *box) Destroy(_ context.Context, vm uuid.UUID) error {
	defer b.enter(vm)()
	b.say("destroy")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.off = true
	return nil
}

func (b *box) Save(_ context.Context, vm uuid.UUID, name string) error {
	defer b.enter(vm)()
	b.say("save %s", name)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.saved[name] = b.saveErr == nil
	return b.saveErr
}

func (b *box) Saved(_ context.Context, _ uuid.UUID, name string) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved[name], nil
}

func (b *box) LastSaved(_ context.Context, _ uuid.UUID, before time.Time) (string, error) {
	b.say("last saved before %s", before.UTC().Format(time.TimeOnly))
	return "s1", nil
}

func (b *box) Revert(_ context.Context, vm uuid.UUID, name string, paused bool) error {
	defer b.enter(vm)()
	b.say("revert %s", name)
	b.set(vm, paused)
	return nil
}

func (b *box) Unsave(_ context.Context, vm uuid.UUID, name string) error {
	defer b.enter(vm)()
	b.say("unsave %s", name)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.saved, name)
	return nil
}

func (b *box) Active(context.Context, uuid.UUID) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.off, nil
}

func (b *box) Alert(ctx context.Context, o Order) (string, error) {
	b.say("alert %s", o.Target)
	if b.told != nil {
		return b.told(ctx, o)
	}
	return "taken", nil
}

func (b *box) Take(ctx context.Context, o Order) (time.Time, error) {
	defer b.enter(o.VM)()
	b.say("capture")
	if b.capture != nil {
		if _, err := b.capture(ctx, o); err != nil {
			return time.Time{}, err
		}
	}
	return time.Now(), nil
}

func (b *box) Pack(ctx context.Context, o Order) (string, error) {
	if b.pack != nil {
		return b.pack(ctx, o)
	}
	return "/bundles/" + o.ID.String(), nil
}

func (b *box) Captured(_ context.Context, o Order) (string, time.Time, error) {
	return b.bundles[o.ID], b.taken[o.ID], b.useless
}

func (b *box) RecordOrder(o Order) error {
	if !b.journal.onDisk(o.ID) {
		b.say("RECORDED BEFORE JOURNALED")
	}
	b.say("order %s", o.Kind)
	return b.recErr
}

// onDisk says whether a crash would leave the order without a result, in the
// journal's file or its log.
func (j *Journal) onDisk(id uuid.UUID) (found bool) {
	_ = j.db.View(func(tx *bbolt.Tx) error {
		k, _ := tx.Bucket(bPending).Cursor().Seek(id[:])
		found = bytes.Equal(k, id[:])
		return nil
	})
	text, err := os.ReadFile(j.db.Path() + "-wal")
	if err != nil {
		return false
	}
	b, _ := parseWAL(text)
	return found || slices.ContainsFunc(b.Orders, func(o Order) bool { return o.ID == id })
}

func (b *box) RecordResult(o Order, r Result) error {
	b.say("%s %s", o.Kind, r.Status)
	return b.recErr
}

func journal(t *testing.T) *Journal {
	t.Helper()
	return reopen(t, filepath.Join(t.TempDir(), "journal.db"))
}

func reopen(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// run runs a responder, which has read its journal by then, until the returned
// function is called.
func run(t *testing.T, r *Responder) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	select {
	case <-r.opened:
	case err := <-done: // it could not
		done <- err
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func submit(t *testing.T, r *Responder, vm uuid.UUID, steps ...Kind) []Order {
	t.Helper()
	orders, err := r.Submit(context.Background(), Request{VM: vm, Name: "web", Steps: steps, Asked: "test", Reason: "because"})
	if err != nil {
		t.Fatal(err)
	}
	return orders
}

// awaited bounds what a test waits for: a machine may be loaded, or far slower.
const awaited = 5 * time.Minute

func wait(t *testing.T, r *Responder, o Order) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), awaited)
	defer cancel()
	res, err := r.Wait(ctx, o.ID)
	if err != nil {
		t.Fatalf("%s: %v", o.Kind, err)
	}
	return res
}

// waiting returns when n orders wait: one is counted out just after its result is
// told.
func waiting(t *testing.T, r *Responder, n int64) {
	t.Helper()
	for end := time.Now().Add(awaited); r.Stats().Waiting != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d orders wait, want %d", r.Stats().Waiting, n)
		}
	}
}

// until waits for what is said on a channel, or for the order to be given up.
func until[T any](ctx context.Context, said <-chan T) (T, error) {
	select {
	case v := <-said:
		return v, nil
	case <-ctx.Done():
		return *new(T), ctx.Err()
	}
}
