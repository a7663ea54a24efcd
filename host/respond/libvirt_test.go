package respond

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/domain/domaintest"
)

// bundler captures with libvirt into a directory of the order's.
type bundler struct {
	c   *domain.Client
	dir string
	at  func(ctx context.Context) // called while a capture is under way, which does not end before
}

func (b *bundler) Take(ctx context.Context, o Order) (time.Time, error) {
	dir := filepath.Join(b.dir, o.ID.String())
	if err := os.RemoveAll(dir); err != nil {
		return time.Time{}, err
	}
	s, err := b.c.Capture(ctx, o.VM, dir, &domain.CaptureOptions{Progress: func(domain.Progress) {
		if b.at != nil {
			b.at(ctx)
		}
	}})
	if err != nil {
		return time.Time{}, err
	}
	if len(s.Files) < 3 {
		return time.Time{}, errors.New("files are missing")
	}
	return s.Finished, nil
}

func (b *bundler) Pack(_ context.Context, o Order) (string, error) {
	dir := filepath.Join(b.dir, o.ID.String())
	return dir, os.WriteFile(filepath.Join(dir, "whole"), nil, 0o600)
}

func (b *bundler) Captured(_ context.Context, o Order) (string, time.Time, error) {
	dir := filepath.Join(b.dir, o.ID.String())
	if _, err := os.Stat(filepath.Join(dir, "whole")); err != nil {
		return "", time.Time{}, nil
	}
	return dir, time.Time{}, nil
}

// TestRealVM has orders carried out on a guest, the process's end and the
// next one's start in the middle of a capture included.
func TestRealVM(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Disks: []string{"raw"}})
	c := domain.New(nil)
	t.Cleanup(func() { _ = c.Close() })
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	entered := make(chan struct{})
	enter := sync.OnceFunc(func() { close(entered) })
	b := &bundler{c: c, dir: g.Dir, at: func(ctx context.Context) { enter(); <-ctx.Done() }}
	r := New(j, c, b, nil, nil)
	stop := run(t, r)
	orders := submit(t, r, g.UUID, Log, Pause, Capture, Resume)
	if res := wait(t, r, orders[1]); res.Status != Done {
		t.Fatalf("%+v", res)
	}
	if p, err := c.Paused(t.Context(), g.UUID); !p || err != nil {
		t.Errorf("paused %t, %v", p, err)
	}
	select {
	case <-entered:
	case <-time.After(awaited):
		t.Fatal("no capture is under way")
	}
	stop()
	if left, _ := os.ReadDir(filepath.Join(g.Dir, orders[2].ID.String())); len(left) != 0 {
		t.Errorf("the interrupted capture left %v", left)
	}
	_ = j.Close()

	j = reopen(t, path)
	b.at = nil
	r = New(j, c, b, nil, nil)
	run(t, r)
	res := wait(t, r, orders[2])
	if res.Status != Done || !res.Recovered || res.Bundle == "" {
		t.Errorf("%+v", res)
	}
	wait(t, r, orders[3])
	t.Logf("captured in %s", res.Effect.Sub(res.Started))

	g.Virsh(t, "destroy")
	if res := wait(t, r, submit(t, r, g.UUID, Pause)[0]); res.Status != Failed || !strings.Contains(res.Error, "not running") || res.Attempts != 1 {
		t.Errorf("pause of a VM that is off: %+v", res)
	}
}

// TestRealVMContained isolates a guest, begins it anew and ends it. An alert
// that hangs holds up none of it.
func TestRealVMContained(t *testing.T) {
	const mac = "52:54:00:aa:00:01"
	g := domaintest.Start(t, domaintest.Config{Devices: "<interface type='user'><mac address='" + mac + "'/><model type='e1000e'/></interface>"})
	c := domain.New(nil)
	t.Cleanup(func() { _ = c.Close() })
	j := journal(t)
	b := newBox(j)
	b.told = func(ctx context.Context, _ Order) (string, error) { <-ctx.Done(); return "", ctx.Err() }
	r := New(j, c, nil, nil, &Options{Alerts: b})
	run(t, r)
	orders, err := r.Submit(t.Context(), Request{VM: g.UUID, Steps: []Kind{Alert, Isolate, Pause, Reset}, Alerts: []string{"hangs"}, Asked: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range orders[1:] {
		if res := wait(t, r, o); res.Status != Done || res.Already {
			t.Errorf("%s: %+v", o.Kind, res)
		}
	}
	if out := g.Virsh(t, "domif-getlink", mac); !strings.Contains(out, "down") {
		t.Errorf("virsh says %s", out)
	}
	if p, err := c.Paused(t.Context(), g.UUID); !p || err != nil {
		t.Errorf("paused %t, %v", p, err)
	}
	for i, o := range submit(t, r, g.UUID, Connect, Destroy, Destroy) {
		if res := wait(t, r, o); res.Status != Done || res.Already != (i == 2) {
			t.Errorf("%s: %+v", o.Kind, res)
		}
	}
	if out := g.Virsh(t, "domif-getlink", mac, "--config"); !strings.Contains(out, "up") {
		t.Errorf("virsh says %s", out)
	}
}

func TestNoLibvirtd(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := domain.New(&domain.Options{Socket: filepath.Join(dir, "none")})
		defer c.Close()
		r := New(reopen(t, filepath.Join(dir, "journal.db")), c, nil, nil, &Options{PauseWithin: 200 * time.Millisecond, Away: 300 * time.Millisecond})
		run(t, r)
		if res := wait(t, r, submit(t, r, vm1, Pause)[0]); res.Status != Failed || !strings.Contains(res.Error, "virtlogd -d && libvirtd -d") || res.Attempts < 2 {
			t.Errorf("%+v", res)
		}
	})
}
