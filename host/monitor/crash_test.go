package monitor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/failpoint"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// These tests have the monitor killed at each step of the path, by a build of
// it that can be, and hold what is left and what the next one makes of it
// against what the guest sent.

// pausePlaybook orders for every violation: so each has an order of its own.
const pausePlaybook = `
version: 1
rules:
  - name: violation
    match: {engine: tsem, severity: medium}
    steps: [log, pause]
    once_per: event
  - name: lying-guest
    match: {engine: monitor, severity: critical}
    steps: [log]
    once_per: event
`

// newMortal is a host whose monitor can be told where to die.
func newMortal(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.build = buildToDie
	h.env = []string{"OUTGUARD_FAILPOINTS=" + h.root + "/die"}
	h.write(h.root+"/playbook.yaml", pausePlaybook)
	h.configure("playbook: " + h.root + "/playbook.yaml\nevidence: {segment: 1MiB}\n")
	if err := os.Mkdir(h.root+"/die", 0o700); err != nil {
		t.Fatal(err)
	}
	return h
}

// configure adds lines to the configuration.
func (h *host) configure(lines string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(h.config, string(text)+lines)
}

func (h *host) arm(p failpoint.Point) { h.t.Helper(); h.write(h.root+"/die/"+string(p), "") }

// died waits for the process to have been killed at the armed point.
func (h *host) died(p failpoint.Point) {
	h.t.Helper()
	done := make(chan error, 1)
	go func() { done <- h.cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			h.t.Fatalf("outguardd ended by itself: %v", err)
		}
	case <-time.After(patience):
		_ = h.cmd.Process.Kill()
		<-done
		h.t.Fatalf("outguardd was never at %s", p)
	}
	if _, err := os.Stat(h.root + "/die/" + string(p)); err == nil {
		h.t.Fatalf("killed before %s", p)
	}
}

// persistent has the agent connect again whenever its connection ends, as a
// guest's does, from where it has been accepted until the returned stop.
func (h *host) persistent(a *prototest.Agent) (stop func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if conn, err := net.Dial("unix", h.root+"/run/vsock/web.sock_6820"); err == nil {
				_ = a.Run(ctx, conn) // why it ended is what the test is about
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	h.accepted(a, nil)
	return sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// record is what a VM's record holds, by kinds.
type record struct {
	findings  []engine.Finding
	decisions map[string][]decide.Decision // by finding
	orders    map[uuid.UUID]int
	results   map[uuid.UUID]int
	sequences map[[2]uint64]int // (CPU, class) and sequence: how often
}

func (h *host) read() *record {
	h.t.Helper()
	r := &record{decisions: map[string][]decide.Decision{}, orders: map[uuid.UUID]int{}, results: map[uuid.UUID]int{}, sequences: map[[2]uint64]int{}}
	dir := evidence.StreamDir(filepath.Join(h.root, "state", evidence.StoreDir), h.vm)
	err := evidence.NewReader(dir).Read(0, 1<<63, func(rec *evidence.Record) error { return r.add(rec) })
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (r *record) add(rec *evidence.Record) (err error) {
	switch rec.Kind {
	case evidence.KindFinding:
		var f engine.Finding
		err = json.Unmarshal(rec.Payload, &f)
		r.findings = append(r.findings, f)
	case evidence.KindDecision:
		var d decide.Decision
		err = json.Unmarshal(rec.Payload, &d)
		r.decisions[d.Finding] = append(r.decisions[d.Finding], d)
	case evidence.KindOrder:
		var o respond.Order
		err = json.Unmarshal(rec.Payload, &o)
		r.orders[o.ID]++
	case evidence.KindResult:
		var o respond.Result
		err = json.Unmarshal(rec.Payload, &o)
		r.results[o.Order]++
	case evidence.KindFrame:
		if rec.Payload[16] == 1 { // else it broke off, and came again
			r.frame(rec.Payload[24:])
		}
	}
	return err
}

func (r *record) frame(raw []byte) {
	h, err := vsockproto.ParseFrameHeader(raw, vsockproto.MaxFrame)
	if err != nil || h.Type != vsockproto.FrameEvents {
		return
	}
	es, err := vsockproto.ParseEvents(raw[vsockproto.FrameHeaderSize:])
	for rest := es.Records; err == nil && len(rest) > 0; {
		var e vsockproto.Header
		if e, err = vsockproto.ParseHeader(rest); err == nil {
			r.sequences[[2]uint64{uint64(e.CPU)<<8 | uint64(e.Class), e.Sequence}]++
			rest = rest[e.Length:]
		}
	}
}

// paths lists the paths of the violations, sorted.
func (r *record) paths() []string {
	var out []string
	for _, f := range r.findings {
		if strings.HasPrefix(f.Rule, "tsem/") {
			out = append(out, f.Path)
		}
	}
	slices.Sort(out)
	return out
}

// accountFor holds the record and the journal against what was sent: each of
// sent records once, each path in want found once, each finding decided once,
// and each decision carried out by its orders, once.
func (h *host) accountFor(sent uint64, want []string) {
	h.t.Helper()
	r := h.read()
	slices.Sort(want)
	if got := r.paths(); !slices.Equal(got, want) {
		h.t.Errorf("found %q, want %q", got, want)
	}
	for s := uint64(1); s <= sent; s++ {
		if n := r.sequences[[2]uint64{uint64(vsockproto.Bulk), s}]; n != 1 {
			h.t.Errorf("record %d of the guest is on the host's %d times", s, n)
		}
	}
	byFinding := map[string][]respond.Kind{}
	for _, e := range h.journal() {
		byFinding[e.Order.Finding] = append(byFinding[e.Order.Finding], e.Order.Kind)
		if e.Result != nil && (r.results[e.Order.ID] != 1 || r.orders[e.Order.ID] == 0) {
			h.t.Errorf("order %s %s: on record %d times, its result %d times", e.Order.Kind, e.Order.ID, r.orders[e.Order.ID], r.results[e.Order.ID])
		}
	}
	for _, f := range r.findings {
		var steps []respond.Kind
		for _, d := range r.decisions[f.ID] {
			for _, s := range d.Steps {
				steps = append(steps, respond.Kind(s))
			}
		}
		if len(r.decisions[f.ID]) != 1 || !slices.Equal(byFinding[f.ID], steps) {
			h.t.Errorf("finding %s %s: %d decisions, steps %q, orders %q", f.Rule, f.Path, len(r.decisions[f.ID]), steps, byFinding[f.ID])
		}
	}
}

// journal reads the orders of a monitor that does not run, oldest first.
func (h *host) journal() []respond.Entry {
	h.t.Helper()
	j, err := respond.OpenJournal(filepath.Join(h.root, "state", "journal.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer j.Close()
	var out []respond.Entry
	if err := j.Entries(func(e respond.Entry) bool { out = append(out, e); return true }); err != nil {
		h.t.Fatal(err)
	}
	slices.Reverse(out)
	return out
}

// long is a path so long that few events fill a segment.
var long = "/srv/" + strings.Repeat("x", 3000)

// TestKilledAtEveryStep kills the monitor at each step but those around a call
// of libvirt, which needs one: see TestKilledAroundLibvirt and
// TestKilledWhilePacking.
func TestKilledAtEveryStep(t *testing.T) {
	for _, p := range failpoint.All() {
		if slices.Contains(aroundLibvirt, p) || slices.Contains(packing, p) {
			continue
		}
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			switch {
			case slices.Contains(givingUp, p):
				killedGivingUp(t, p)
				return
			case slices.Contains(rotating, p):
				killedRotating(t, p)
				return
			}
			killedAt(t, p)
		})
	}
}

// packing are the steps that a capture comes to where it is made an archive.
var packing = []failpoint.Point{failpoint.Packing, failpoint.Labelled, failpoint.Packed}

// givingUp are the steps that a record comes to only where there is retention.
var givingUp = []failpoint.Point{failpoint.Tombstoned, failpoint.Thinned, failpoint.Buried, failpoint.Forgotten}

// killedGivingUp kills the monitor while it gives up a part of a record: what is
// left verifies, and the next monitor goes on with it without missing anything.
func killedGivingUp(t *testing.T, p failpoint.Point) {
	h := newMortal(t)
	text, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	h.write(h.config, strings.Replace(string(text), "segment: 1MiB}", "segment: 1MiB, retention: {size: 2MiB}}", 1))
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	noise := func(n int) (bulk []*vsockproto.Event) {
		for range n {
			path := make([]byte, 1500)
			for i := range path {
				path[i] = "0123456789abcdef"[rand.IntN(16)]
			}
			e := opened("/srv/" + string(path))
			if rand.IntN(3) == 0 { // critical: it stays until nothing else is left
				e = prototest.Sample(vsockproto.BprmCommittedCreds)
				e.Path.Data = append([]byte("/srv/"), path...)
			}
			bulk = append(bulk, e)
		}
		return bulk
	}
	send(t, a, opened("/etc/passwd"))
	h.arm(p)
	sending := make(chan error, 1)
	sent := uint64(1)
	died := make(chan struct{})
	go func() {
		for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); { // each some 900 KiB, until it is killed
			sent += 500
			if err := a.Send(t.Context(), noise(500)...); err != nil {
				sending <- err
				return
			}
			select {
			case <-died:
				sending <- nil
				return
			case <-time.After(300 * time.Millisecond): // so that it is judged and covered
			}
		}
		sending <- errors.New("it was not killed")
	}()
	h.died(p)
	close(died)
	h.verifyCut()
	h.start()
	if err := errors.Join(<-sending, a.Drained(t.Context())); err != nil {
		t.Fatal(err)
	}
	h.missing(t)
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Errorf("a stop in order: %v", err)
	}
	rep := h.verify()
	if rep.Remainders == 0 && rep.Gone == nil {
		t.Errorf("nothing was given up: %+v", rep)
	}
}

func killedAt(t *testing.T, p failpoint.Point) {
	h := newMortal(t)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"), opened(long))
	h.seal()
	sent := uint64(2)
	var want []string
	some := func(name string) (all []*vsockproto.Event) {
		for i := range 5 {
			path := fmt.Sprintf("/%s%d", name, i)
			want = append(want, path)
			all = append(all, opened("/etc/passwd"), opened(path))
		}
		sent += uint64(len(all))
		return all
	}
	if p != failpoint.Ordered { // the orders after the first wait behind it, for want of a libvirt
		send(t, a, some("before")...)
	}

	h.arm(p)
	if p == failpoint.Shutdown {
		if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	sending := make(chan error, 1)
	go func() {
		for _, e := range some("meanwhile") {
			if err := a.Send(t.Context(), e); err != nil {
				sending <- err
				return
			}
		}
		var bulk []*vsockproto.Event
		for range 1000 { // three segments
			bulk = append(bulk, opened(long))
		}
		sent += uint64(len(bulk))
		sending <- a.Send(t.Context(), bulk...)
	}()
	h.died(p)
	if p != failpoint.Shutdown {
		h.verifyCut()
	}
	h.start()
	if err := errors.Join(<-sending, a.Drained(t.Context())); err != nil {
		t.Fatal(err)
	}
	send(t, a, some("after")...)
	h.awaitPaths(want)
	h.missing(t)
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Errorf("a stop in order: %v", err)
	}
	h.verify()
	h.accountFor(sent, want)
}

// verifyCut has what the kill left verified: whole, but for a last record that
// was being written.
func (h *host) verifyCut() {
	h.t.Helper()
	v, err := evidence.LoadVerifier(filepath.Join(h.root, "state", evidence.PubFile))
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = evidence.Verify(evidence.StreamDir(filepath.Join(h.root, "state", evidence.StoreDir), h.vm), v)
	if err != nil && !errors.Is(err, evidence.ErrIncomplete) {
		h.t.Errorf("after the kill: %v", err)
	}
}

func (h *host) awaitPaths(want []string) {
	h.t.Helper()
	h.eventually("every violation", func() error {
		var got []string
		for _, f := range h.findings() {
			if strings.HasPrefix(f.Rule, "tsem/") {
				got = append(got, f.Path)
			}
		}
		for _, path := range want {
			if !slices.Contains(got, path) {
				return fmt.Errorf("%s is not found", path)
			}
		}
		return nil
	})
}

// TestProductCannotBeToldToDie: what the tests' build obeys the product does
// not know of.
func TestProductCannotBeToldToDie(t *testing.T) {
	t.Parallel()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "outguardd"))
	if err != nil || bytes.Contains(text, []byte("OUTGUARD_FAILPOINT")) {
		t.Errorf("the product's binary knows of failpoints: %v", err)
	}
	h := newMortal(t)
	h.build = build
	for _, p := range failpoint.All() {
		h.arm(p)
	}
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/new"))
	h.await("tsem/violation")
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Errorf("it died: %v", err)
	}
}

// aroundLibvirt are the steps that an order comes to only where libvirt answers.
var aroundLibvirt = []failpoint.Point{failpoint.Asking, failpoint.Asked, failpoint.Taken, failpoint.Settling, failpoint.Settled}

// TestFilesCut cuts the monitor's own files while it is not there: they are set
// aside, and said; the orders that had no result are taken from the record.
func TestFilesCut(t *testing.T) {
	t.Parallel()
	h := newMortal(t)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/new"))
	before := h.order("pause", "waiting")
	_ = h.end(syscall.SIGKILL)
	for _, name := range []string{"journal.db", "state.db"} {
		path := filepath.Join(h.root, "state", name)
		fi, err := os.Stat(path)
		if err == nil {
			err = os.Truncate(path, fi.Size()/2-7)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	if o := h.order("pause", "waiting"); o.Id != before.Id {
		t.Errorf("order %v; before %v", o, before)
	}
	if aside, _ := filepath.Glob(h.root + "/state/*.db.corrupt-1"); len(aside) != 2 {
		t.Errorf("set aside: %q", aside)
	}
	h.eventually("findings", func() error {
		s, err := h.api.Findings(t.Context(), &apipb.FindingsRequest{})
		if err != nil {
			return err
		}
		defer s.Close()
		said := 0
		for s.Receive() {
			if s.Msg().Finding.Rule == "monitor/corrupt" {
				said++
			}
		}
		if said != 2 {
			err = fmt.Errorf("%d files said to be corrupt", said)
		}
		return errors.Join(err, s.Err())
	})
	send(t, a, opened("/after"))
	h.awaitPaths([]string{"/new", "/after"})
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
	h.accountFor(3, []string{"/new", "/after"})
}
