// Package enginetest is the suite that every engine passes: it builds the
// engine's binary, runs it as the host does, in a process of its own, and
// holds its answers against the contract.
package enginetest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/process"
	"github.com/outguard/outguard/vsockproto"
)

// Build builds the main package of that import path and returns the binary.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// Run runs the suite over the main package of that import path.
func Run(t *testing.T, pkg string) {
	path := Build(t, pkg)
	for name, test := range map[string]func(*testing.T, string){
		"Describe": testDescribe, "Watermark": testWatermark, "Undecodable": testUndecodable,
		"UnknownType": testUnknownType, "Empty": testEmpty, "Checkpoint": testCheckpoint,
		"CheckpointRefused": testCheckpointRefused, "Models": testModels, "ModelFiles": testModelFiles, "VMsApart": testVMsApart,
	} {
		t.Run(name, func(t *testing.T) { test(t, path) })
	}
}

var vmA, vmB = uuid.UUID{0xa}, uuid.UUID{0xb}

// Client drives one engine process, one batch at a time.
type Client struct {
	*process.Process
	t        testing.TB
	verdicts chan process.Verdict
	ended    chan error
}

// Start starts the binary; it is closed with the test.
func Start(t testing.TB, path string) *Client {
	t.Helper()
	p, err := process.Start(t.Context(), process.Config{Path: path}, &process.Options{
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{Process: p, t: t, verdicts: make(chan process.Verdict), ended: make(chan error, 1)}
	quit := make(chan struct{})
	t.Cleanup(func() { close(quit); p.Close() })
	go func() {
		c.ended <- p.Receive(func(v process.Verdict) {
			select {
			case c.verdicts <- v:
			case <-quit:
			}
		})
	}()
	return c
}

// Judge sends a batch and waits for its verdict.
func (c *Client) Judge(b *engine.Batch) []engine.Finding {
	c.t.Helper()
	number, err := c.Send(b, time.Now().Add(10*time.Second))
	if err != nil {
		c.t.Fatal(err)
	}
	select {
	case v := <-c.verdicts:
		if v.Number != number {
			c.t.Fatalf("verdict %d for batch %d", v.Number, number)
		}
		return v.Findings
	case err := <-c.ended:
		c.t.Fatalf("the engine ended at batch %d: %v", number, err)
	case <-time.After(30 * time.Second):
		c.t.Fatalf("no verdict for batch %d", number)
	}
	return nil
}

func testDescribe(t *testing.T, path string) {
	if d := Start(t, path).Description(); d.Name == "" || d.Version == "" {
		t.Errorf("description %+v", d)
	}
}

func testWatermark(t *testing.T, path string) {
	c, g := Start(t, path), NewGuest(vmA)
	server := g.Running("/usr/sbin/httpd")
	const batches = 50
	go func() {
		for range batches {
			g.Serve(server, 2)
			if _, err := c.Send(g.Batch(), time.Now().Add(10*time.Second)); err != nil {
				t.Error(err)
			}
		}
	}()
	for want := range uint64(batches) {
		select {
		case v := <-c.verdicts:
			if v.Number != want+1 {
				t.Fatalf("watermark %d, want %d", v.Number, want+1)
			}
		case err := <-c.ended:
			t.Fatalf("the engine ended: %v", err)
		}
	}
}

// Bytes that are no record are a finding that says where, and cost the engine
// nothing.
func testUndecodable(t *testing.T, path string) {
	c, g := Start(t, path), NewGuest(vmA)
	g.AddBytes([]byte("no record at all"))
	findings := c.Judge(g.Batch())
	if len(findings) == 0 || findings[0].Rule == "" || findings[0].Severity < engine.Info || findings[0].Reason == "" {
		t.Errorf("findings %+v", findings)
	}
	g.Serve(g.Running("/usr/sbin/httpd"), 1)
	c.Judge(g.Batch())
}

func testUnknownType(t *testing.T, path string) {
	c, g := Start(t, path), NewGuest(vmA)
	server := g.Running("/usr/sbin/httpd")
	e := g.Event(server, vsockproto.EventType(60000))
	e.Unknown = make([]byte, 64)
	g.Add(&e)
	g.Serve(server, 1)
	if findings := c.Judge(g.Batch()); len(findings) > 0 {
		t.Errorf("findings %+v", findings)
	}
}

func testEmpty(t *testing.T, path string) {
	c := Start(t, path)
	if findings := c.Judge(NewGuest(vmA).Batch()); len(findings) > 0 {
		t.Errorf("findings %+v", findings)
	}
}

// A process that goes on from another's checkpoint says what one that never
// ended says.
func testCheckpoint(t *testing.T, path string) {
	batches := func() (learn, judge []*engine.Batch) {
		g := NewGuest(vmA)
		server := g.Running("/usr/sbin/httpd")
		for range 3 {
			g.Serve(server, 3)
			learn = append(learn, g.Batch())
		}
		for range 3 {
			g.Serve(server, 1)
			g.Exploit(server)
			judge = append(judge, g.Batch())
		}
		return learn, judge
	}
	learn, judge := batches()
	whole := Start(t, path)
	feed(whole, learn)
	seal(t, whole)
	want := feed(whole, judge[:1])
	want = append(want, feed(whole, judge[1:])...)

	first := Start(t, path)
	feed(first, learn)
	seal(t, first)
	got := feed(first, judge[:1])
	saved, err := first.Checkpoint(t.Context(), vmA)
	if err != nil {
		t.Fatal(err)
	}
	if saved.Judged != uint64(len(learn)+1) {
		t.Errorf("the checkpoint covers %d, want %d", saved.Judged, len(learn)+1)
	}
	first.Close()
	second := Start(t, path)
	if err := second.Restore(t.Context(), vmA, saved.Data); err != nil {
		t.Fatal(err)
	}
	got = append(got, feed(second, judge[1:])...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings differ (-whole +restored):\n%s", diff)
	}
	if diff := cmp.Diff(models(t, whole), models(t, second)); diff != "" {
		t.Errorf("models differ (-whole +restored):\n%s", diff)
	}
}

func feed(c *Client, batches []*engine.Batch) []engine.Finding {
	c.t.Helper()
	var all []engine.Finding
	for _, b := range batches {
		all = append(all, c.Judge(b)...)
	}
	return all
}

func seal(t *testing.T, c *Client) {
	t.Helper()
	if !c.Description().Models {
		return
	}
	if _, _, err := c.Seal(t.Context(), vmA); err != nil {
		t.Fatal(err)
	}
}

func models(t *testing.T, c *Client) []engine.Model {
	t.Helper()
	all, err := c.Models(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func testCheckpointRefused(t *testing.T, path string) {
	c := Start(t, path)
	for _, bad := range []string{"x", "not a checkpoint of any engine, we trust"} {
		if err := c.Restore(t.Context(), vmA, []byte(bad)); err == nil {
			t.Errorf("restore of %q: no error", bad)
		}
	}
	c.Judge(NewGuest(vmA).Batch())
}

// What was learned raises nothing once the model is sealed; what was not does.
func testModels(t *testing.T, path string) {
	c, g := Start(t, path), NewGuest(vmA)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if !c.Description().Models {
		if m, err := c.Models(ctx); err != nil || len(m) > 0 {
			t.Errorf("models %v, error %v, of an engine that says it has none", m, err)
		}
		return
	}
	if _, _, err := c.Learn(ctx, vmA); err != nil {
		t.Fatal(err)
	}
	server := g.Running("/usr/sbin/httpd")
	g.Serve(server, 5)
	if findings := c.Judge(g.Batch()); len(findings) > 0 {
		t.Errorf("findings while it learns: %+v", findings)
	}
	m, saved, err := c.Seal(ctx, vmA)
	if err != nil || !m.Sealed || m.Points == 0 || m.VM != vmA || len(saved.Data) == 0 || saved.Judged != 1 {
		t.Fatalf("seal: %+v, checkpoint of %d bytes up to %d, error %v", m, len(saved.Data), saved.Judged, err)
	}
	g.Serve(server, 3)
	if findings := c.Judge(g.Batch()); len(findings) > 0 {
		t.Errorf("findings for what was learned: %+v", findings)
	}
	g.Exploit(server)
	b := g.Batch()
	checkViolation(t, b, c.Judge(b))
	if all := models(t, c); len(all) != 1 || all[0].Violations == 0 || !all[0].Sealed {
		t.Errorf("models %+v", all)
	}
}

// A model that can be taken out can be put in elsewhere, and what a person
// accepts of it is normal.
func testModelFiles(t *testing.T, path string) {
	c, g, other := Start(t, path), NewGuest(vmA), NewGuest(vmB)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	server, same := g.Running("/usr/sbin/httpd"), other.Running("/usr/sbin/httpd")
	g.Serve(server, 5)
	c.Judge(g.Batch())
	file, err := c.Export(ctx, vmA)
	if errors.Is(err, errors.ErrUnsupported) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m, saved, err := c.Import(ctx, vmB, file)
	if err != nil || m.VM != vmB || m.Points == 0 || len(saved.Data) == 0 {
		t.Fatalf("import: %+v, checkpoint of %d bytes, error %v", m, len(saved.Data), err)
	}
	if _, _, err := c.Seal(ctx, vmB); err != nil {
		t.Fatal(err)
	}
	other.Serve(same, 3)
	if findings := c.Judge(other.Batch()); len(findings) > 0 {
		t.Errorf("findings for what the other VM learned: %+v", findings)
	}
	if _, _, err := c.Import(ctx, vmB, []byte("no model")); err == nil {
		t.Error("a file that is no model was put in")
	}
	if _, _, err := c.Accept(ctx, vmB, [][engine.PointSize]byte{{1, 2, 3}}); err == nil {
		t.Error("a point that the model does not have was accepted")
	}
	aggregate := [engine.PointSize]byte{7}
	if _, _, err := c.Set(ctx, vmB, engine.Settings{Aggregate: &aggregate}); err == nil {
		t.Error("a sealed model took another aggregate")
	}
	if m, saved, err := c.Set(ctx, vmA, engine.Settings{Aggregate: &aggregate, Pseudonyms: [][engine.PointSize]byte{{8}}}); err != nil || m.Aggregate == "" || len(saved.Data) == 0 {
		t.Errorf("set: %+v, error %v", m, err)
	}
	if m, _, err := c.Accept(ctx, vmB, nil); err != nil || m.VM != vmB {
		t.Errorf("nothing was to be accepted: %+v, error %v", m, err)
	}
}

func checkViolation(t *testing.T, b *engine.Batch, findings []engine.Finding) {
	t.Helper()
	i := slices.IndexFunc(findings, func(f engine.Finding) bool { return f.Severity >= engine.High })
	if i < 0 {
		t.Fatalf("no high finding among %+v", findings)
	}
	f := findings[i]
	if f.Rule == "" || f.Reason == "" || f.Event == "" || f.PID == 0 || f.BootNs == 0 || f.Ref == nil {
		t.Fatalf("finding %+v", f)
	}
	if f.Ref.Session != b.Session || f.Ref.Index != b.Index || f.Ref.Sequence == 0 || f.Ref.Class == 0 {
		t.Errorf("ref %+v of batch %d", f.Ref, b.Index)
	}
}

// One VM's model says nothing of another VM.
func testVMsApart(t *testing.T, path string) {
	c, a, b := Start(t, path), NewGuest(vmA), NewGuest(vmB)
	a.Serve(a.Running("/usr/sbin/httpd"), 2)
	c.Judge(a.Batch())
	seal(t, c)
	b.Exploit(b.Running("/usr/sbin/httpd"))
	if c.Description().Models {
		if findings := c.Judge(b.Batch()); len(findings) > 0 {
			t.Errorf("findings for a VM that learns: %+v", findings)
		}
	}
}

// Ended waits until the process has ended and returns why.
func (c *Client) Ended() error {
	c.t.Helper()
	select {
	case err := <-c.ended:
		return err
	case <-time.After(30 * time.Second):
		return errors.New("it has not ended")
	}
}
