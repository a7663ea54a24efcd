package engines

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/outguard/outguard/plugins/engine"
)

// This test binary is its own engine: started with the handshake's cookie it
// serves a scripted one, in a real process.
func TestMain(m *testing.M) {
	if os.Getenv(engine.Handshake.MagicCookieKey) != "" {
		engine.Serve(&scripted{sums: map[uuid.UUID]uint64{}})
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// scripted does what the records of a batch say. Its state is a sum for each
// VM, which every finding shows.
type scripted struct {
	mu   sync.Mutex
	sums map[uuid.UUID]uint64
}

func (e *scripted) Describe() engine.Description {
	return engine.Description{Name: "scripted", Version: "1", Models: true}
}

func (e *scripted) Judge(b *engine.Batch, report func(engine.Finding)) error {
	word := string(b.Records)
	switch {
	case word == "crash":
		os.Exit(3)
	case word == "panic":
		panic("as scripted")
	case word == "hang":
		select {}
	case word == "error":
		return errors.New("cannot go on")
	}
	e.mu.Lock()
	e.sums[b.VM] += b.Index
	sum := e.sums[b.VM]
	e.mu.Unlock()
	times := 1
	if word == "flood" {
		times = 3 * engine.MaxBatchFindings
	}
	for range times {
		report(engine.Finding{
			Rule: "scripted/seen", Severity: engine.Low, Reason: fmt.Sprintf("%s %d", word, sum),
			Ref: &engine.Ref{Session: b.Session, Index: b.Index, Sequence: 1},
		})
	}
	return nil
}

func (e *scripted) Models() []engine.Model {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []engine.Model
	for vm, sum := range e.sums {
		all = append(all, engine.Model{VM: vm, Points: sum})
	}
	return all
}

func (e *scripted) Learn(_ context.Context, vm uuid.UUID) (engine.Model, error) {
	return engine.Model{VM: vm}, nil
}

func (e *scripted) Seal(_ context.Context, vm uuid.UUID) (engine.Model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sums[vm] += 1 << 32
	return engine.Model{VM: vm, Sealed: true, Points: e.sums[vm]}, nil
}

func (e *scripted) Checkpoint(vm uuid.UUID) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return binary.LittleEndian.AppendUint64(nil, e.sums[vm]), nil
}

func (e *scripted) Restore(vm uuid.UUID, c []byte) error {
	if len(c) != 8 {
		return engine.ErrInvalid
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sums[vm] = binary.LittleEndian.Uint64(c)
	return nil
}

// harness runs one Supervisor over the scripted engine.
type harness struct {
	*Supervisor
	t    *testing.T
	stop func()

	mu       sync.Mutex
	findings []engine.Finding
	came     chan struct{}
	hold     func(engine.Finding) // called before a finding is taken
}

var (
	vmA, vmB = uuid.UUID{0xa}, uuid.UUID{0xb}
	session  = uuid.UUID{0x5}
)

func start(t *testing.T, cfg Config, opts *Options) *harness {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Path == "" {
		cfg.Path = self
	}
	cfg.Name = "scripted"
	if opts == nil {
		opts = &Options{}
	}
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	h := &harness{t: t, came: make(chan struct{}, 1)}
	h.Supervisor = New(cfg, h.add, opts)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *harness) add(f engine.Finding) {
	h.mu.Lock()
	hold := h.hold
	h.mu.Unlock()
	if hold != nil {
		hold(f)
	}
	h.mu.Lock()
	h.findings = append(h.findings, f)
	h.mu.Unlock()
	select {
	case h.came <- struct{}{}:
	default:
	}
}

// await returns the findings once one satisfies is.
func (h *harness) await(what string, is func(engine.Finding) bool) engine.Finding {
	h.t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		h.mu.Lock()
		i := slices.IndexFunc(h.findings, is)
		all := slices.Clone(h.findings)
		h.mu.Unlock()
		if i >= 0 {
			return all[i]
		}
		select {
		case <-h.came:
		case <-timeout:
			h.t.Fatalf("no finding %s among %v", what, all)
		}
	}
}

func (h *harness) awaitReason(want string) engine.Finding {
	h.t.Helper()
	return h.await(want, func(f engine.Finding) bool { return f.Reason == want })
}

func (h *harness) awaitRule(rule string) engine.Finding {
	h.t.Helper()
	return h.await(rule, func(f engine.Finding) bool { return f.Rule == rule })
}

func (h *harness) submit(vm uuid.UUID, index uint64, word string) {
	h.t.Helper()
	b := &engine.Batch{VM: vm, Session: session, Index: index, Received: time.Now(), Count: 1, Records: []byte(word)}
	if err := h.Submit(h.t.Context(), b); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) reasons() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for _, f := range h.findings {
		if f.Rule == "scripted/seen" {
			all = append(all, f.Reason)
		}
	}
	return all
}

func TestJudge(t *testing.T) {
	judged := make(chan uint64, 10)
	h := start(t, Config{}, &Options{Judged: func(b *engine.Batch, _ time.Time) { judged <- b.Index }})
	h.submit(vmA, 7, "one")
	f := h.awaitReason("one 7")
	if f.Engine != "scripted" || f.VM != vmA || f.ID == "" || f.At.IsZero() || f.Received.IsZero() || f.Ref == nil || f.Ref.Index != 7 {
		t.Errorf("finding %+v", f)
	}
	h.submit(vmA, 1, "two")
	h.submit(vmB, 5, "three")
	h.awaitReason("two 8")
	h.awaitReason("three 5")
	if st := h.Status(); st.Batches != 3 || !st.Running || st.Pending != 0 || st.Findings != 3 {
		t.Errorf("status %+v", st)
	}
	for _, want := range []uint64{7, 1, 5} {
		if got := <-judged; got != want {
			t.Errorf("judged %d, want %d", got, want)
		}
	}
	models, err := h.Models(t.Context())
	if err != nil || len(models) != 2 {
		t.Errorf("models %v, error %v", models, err)
	}
}

// After a crash the batches that no checkpoint covers are judged again, and
// nobody outside sees them twice.
func TestCrashJudgesAgain(t *testing.T) {
	h := start(t, Config{}, nil)
	h.submit(vmA, 1, "a")
	h.submit(vmA, 2, "b")
	h.awaitReason("b 3")
	if _, err := h.Seal(t.Context(), vmA); err != nil { // a checkpoint of 3 + 2^32
		t.Fatal(err)
	}
	h.submit(vmA, 4, "c")
	h.awaitReason(fmt.Sprint("c ", 1<<32+7))
	h.kill()
	h.awaitRule(RuleEnded)
	h.submit(vmA, 8, "d")
	h.awaitReason(fmt.Sprint("d ", 1<<32+15))
	want := []string{"a 1", "b 3", fmt.Sprint("c ", 1<<32+7), fmt.Sprint("d ", 1<<32+15)}
	if got := h.reasons(); !slices.Equal(got, want) {
		t.Errorf("findings %q, want %q", got, want)
	}
}

// However often the process is killed, and wherever checkpoints fall, each VM's
// batches are judged once and in order: the sums that the engine keeps say so.
func TestKilledAgainAndAgain(t *testing.T) {
	const batches = 300
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	h := start(t, Config{}, &Options{
		MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, CheckpointEvery: 2 * time.Millisecond,
		CircuitAfter: 1000, QueueBytes: 20 * itemOverhead,
	})
	vms := []uuid.UUID{vmA, vmB, {0xc}}
	for i := range uint64(batches) {
		for _, vm := range vms {
			h.submit(vm, i, "w")
		}
		if r.IntN(40) == 0 {
			h.kill()
		}
	}
	want := make([]string, batches)
	sum := 0
	for i := range want {
		sum += i
		want[i] = fmt.Sprint("w ", sum)
	}
	for _, vm := range vms {
		h.await(vm.String(), func(f engine.Finding) bool { return f.VM == vm && f.Ref != nil && f.Ref.Index == batches-1 })
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	got := map[uuid.UUID][]string{}
	for _, f := range h.findings {
		if f.Rule == "scripted/seen" {
			got[f.VM] = append(got[f.VM], f.Reason)
		} else if f.Rule != RuleEnded {
			t.Errorf("finding %+v", f)
		}
	}
	for _, vm := range vms {
		if !slices.Equal(got[vm], want) {
			t.Errorf("%s was judged %q", vm, got[vm])
		}
	}
}

// A batch that no process survives costs its own VM that batch, and no other
// VM anything.
func TestPoison(t *testing.T) {
	for _, word := range []string{"crash", "panic", "error"} {
		t.Run(word, func(t *testing.T) {
			h := start(t, Config{}, &Options{MinBackoff: time.Millisecond})
			h.submit(vmA, 1, "a")
			h.awaitReason("a 1")
			h.submit(vmA, 2, word)
			h.submit(vmA, 4, "b")
			h.submit(vmB, 1, "c")
			f := h.awaitRule(RulePoison)
			if f.VM != vmA || f.Ref.Index != 2 || f.Severity != engine.Severest {
				t.Errorf("finding %+v", f)
			}
			h.awaitReason("b 5")
			h.awaitReason("c 1")
		})
	}
}

func TestSilent(t *testing.T) {
	h := start(t, Config{}, &Options{Deadline: time.Second, MinBackoff: time.Millisecond})
	h.submit(vmA, 1, "hang")
	if f := h.awaitRule(RuleSilent); f.VM != vmA {
		t.Errorf("finding %+v", f)
	}
	h.awaitRule(RulePoison)
	h.submit(vmA, 2, "a")
	h.awaitReason("a 2")
}

func TestFlood(t *testing.T) {
	h := start(t, Config{}, nil)
	h.submit(vmA, 1, "flood")
	f := h.awaitRule("engine/suppressed")
	if f.Detail["suppressed"] != fmt.Sprint(2*engine.MaxBatchFindings+1) {
		t.Errorf("finding %+v", f)
	}
	if n := len(h.reasons()); n != engine.MaxBatchFindings-1 {
		t.Errorf("%d findings one by one", n)
	}
}

// Backpressure: while the engine hangs, the VM with a full queue waits and
// another one does not.
func TestBackpressure(t *testing.T) {
	h := start(t, Config{}, &Options{QueueBytes: 4 * itemOverhead, Deadline: time.Hour})
	h.submit(vmA, 1, "hang")
	for i := range uint64(2) {
		h.submit(vmA, i, "a")
	}
	full := &engine.Batch{VM: vmA, Session: session, Records: make([]byte, itemOverhead)}
	if h.TrySubmit(full) {
		t.Error("a full queue took a batch")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Submit(ctx, full); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	full.VM = vmB
	if !h.TrySubmit(full) {
		t.Error("another VM waits")
	}
	h.kill()
}

func TestMissingBinary(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	h := start(t, Config{Path: missing}, &Options{MinBackoff: time.Millisecond, CircuitAfter: 2, CircuitFor: time.Hour})
	f := h.awaitRule(RuleStart)
	if !strings.Contains(f.Reason, missing) || !strings.Contains(f.Reason, "no such file") {
		t.Errorf("reason %q", f.Reason)
	}
	if f := h.awaitRule(RuleCircuit); f.Severity != engine.Severest {
		t.Errorf("finding %+v", f)
	}
	h.submit(vmA, 1, "a") // passes
	if st := h.Status(); st.Unjudged != 1 || !st.CircuitOpen || st.Pending != 0 {
		t.Errorf("status %+v", st)
	}
	if _, err := h.Models(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("error %v", err)
	}
}

// When the engine can be started again, what it missed is said, VM by VM.
func TestCircuitCloses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine")
	h := start(t, Config{Path: path}, &Options{MinBackoff: time.Millisecond, CircuitAfter: 1, CircuitFor: 10 * time.Millisecond})
	h.submit(vmA, 1, "early")
	h.awaitRule(RuleCircuit)
	h.submit(vmA, 2, "late")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	f := h.awaitRule(RuleUnjudged)
	if f.VM != vmA || f.Detail["batches"] != "2" || !strings.HasSuffix(f.Detail["last"], "/2") {
		t.Errorf("finding %+v", f)
	}
	h.submit(vmA, 4, "on")
	h.awaitReason("on 4")
}

func TestChecksum(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	h := start(t, Config{SHA256: hex.EncodeToString(sum[:])}, nil)
	h.submit(vmA, 1, "a")
	h.awaitReason("a 1")

	sum[0] ^= 1
	wrong := start(t, Config{SHA256: hex.EncodeToString(sum[:])}, nil)
	if f := wrong.awaitRule(RuleStart); !strings.Contains(f.Reason, "checksum does not match") {
		t.Errorf("reason %q", f.Reason)
	}
}

func TestNotAnEngine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho '1|99|unix|/none|grpc'\nread x\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := start(t, Config{Path: path}, nil)
	if f := h.awaitRule(RuleStart); !strings.Contains(f.Reason, fmt.Sprint("contract version ", engine.ContractVersion)) {
		t.Errorf("reason %q", f.Reason)
	}
	silent := start(t, Config{Path: "/bin/true"}, nil)
	if f := silent.awaitRule(RuleStart); !strings.Contains(f.Reason, fmt.Sprint("contract version ", engine.ContractVersion)) {
		t.Errorf("reason %q", f.Reason)
	}
}

// A checkpoint outlives the Supervisor: an orderly stop stores one.
func TestStop(t *testing.T) {
	store := Dir(t.TempDir())
	h := start(t, Config{}, &Options{Store: store})
	h.submit(vmA, 5, "a")
	h.awaitReason("a 5")
	h.stop()
	if s, index, ok, err := h.Covered(vmA); s != session || index != 5 || !ok || err != nil {
		t.Errorf("covered %s/%d %v, error %v", s, index, ok, err)
	}
	again := start(t, Config{}, &Options{Store: store})
	again.submit(vmA, 6, "b")
	again.awaitReason("b 11")
}

// A checkpoint that cannot be used is said and kept; only Learn gives it up.
// TestNoCheckpointBeforeItsFindings: what a checkpoint covers is not judged
// again after a crash, so its findings are reported before it is stored.
func TestNoCheckpointBeforeItsFindings(t *testing.T) {
	store := NewMemory()
	h := start(t, Config{}, &Options{Store: store, CheckpointEvery: time.Millisecond})
	slow := make(chan struct{})
	entered := make(chan struct{})
	h.mu.Lock()
	h.hold = func(f engine.Finding) {
		if f.Reason == "slow 7" {
			close(entered)
			<-slow
		}
	}
	h.mu.Unlock()
	h.submit(vmA, 7, "slow")
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := h.Seal(ctx, vmA); err == nil {
		t.Error("a checkpoint covers what is not reported")
	}
	if all, _ := store.Load("scripted"); len(all) != 0 {
		t.Errorf("stored: %v", all)
	}
	close(slow)
	h.awaitReason("slow 7")
	if _, err := h.Seal(t.Context(), vmA); err != nil {
		t.Error(err)
	}
	if all, _ := store.Load("scripted"); all[vmA].Index != 7 {
		t.Errorf("stored: %v", all)
	}
}

func TestCheckpointRefused(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, store Dir){
		"by the engine": func(t *testing.T, store Dir) {
			if err := store.Save("scripted", vmA, Saved{Session: session, Index: 9, Data: []byte("bad")}); err != nil {
				t.Fatal(err)
			}
		},
		"by its digest": func(t *testing.T, store Dir) {
			path := store.path("scripted", vmA)
			if err := replace(path, appendSaved(nil, Saved{Data: make([]byte, 8)})[1:]); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := Dir(t.TempDir())
			if err := store.Save("scripted", vmA, Saved{Data: make([]byte, 8)}); err != nil {
				t.Fatal(err)
			}
			spoil(t, store)
			bad, err := os.ReadFile(store.path("scripted", vmA))
			if err != nil {
				t.Fatal(err)
			}
			h := start(t, Config{}, &Options{Store: store, CheckpointEvery: time.Millisecond})
			if f := h.awaitRule(RuleRestore); f.VM != vmA || f.Severity != engine.Severest {
				t.Errorf("finding %+v", f)
			}
			h.submit(vmA, 1, "a")
			h.awaitReason("a 1")
			if _, err := h.Seal(t.Context(), vmA); !errors.Is(err, ErrRefused) {
				t.Errorf("seal: %v", err)
			}
			h.checkpointDirty(t.Context(), 0)
			if now, err := os.ReadFile(store.path("scripted", vmA)); err != nil || !slices.Equal(now, bad) {
				t.Errorf("the checkpoint was overwritten, error %v", err)
			}
			if _, err := h.Learn(t.Context(), vmA); err != nil {
				t.Fatal(err)
			}
			h.stop()
			if _, index, ok, err := h.Covered(vmA); !ok || err != nil || index > 1 {
				t.Errorf("covered %d, %v, error %v", index, ok, err)
			}
		})
	}
}

func TestReplayBytesForceCheckpoints(t *testing.T) {
	h := start(t, Config{}, &Options{ReplayBytes: 16 * itemOverhead, CheckpointEvery: time.Hour})
	for i := range uint64(200) {
		h.submit(vmA, 1, fmt.Sprint("n", i))
	}
	h.awaitReason("n199 200")
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.findings) != 200 {
		t.Errorf("%d findings", len(h.findings))
	}
}
