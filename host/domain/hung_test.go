package domain

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// TestHungDomainsHoldUpNobody: QEMU of more domains hangs than libvirtd takes calls of a
// connection. Others whose calls go over the same one are paused all the same; a second
// call about a domain waits for the first, and when QEMU goes on it comes about.
func TestHungDomainsHoldUpNobody(t *testing.T) {
	libvirtd := domaintest.NewPrivate(t)
	c := New(&Options{Socket: libvirtd.Socket})
	t.Cleanup(func() { _ = c.Close() })
	var vms []uuid.UUID
	for i := range 7 {
		vm := uuid.New()
		vm[15] = byte(i) * perVM // all go over one line
		libvirtd.Run(vm, fmt.Sprintf("hung-%d", i))
		vms = append(vms, vm)
	}
	well, hung := vms[0], vms[1:]
	for _, vm := range hung {
		libvirtd.Signal(vm, syscall.SIGSTOP)
	}
	var all sync.WaitGroup
	for _, vm := range hung {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), hangsAfter+500*time.Millisecond)
			defer cancel()
			if err := c.Pause(ctx, vm); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("pause of a domain whose QEMU hangs: %v", err)
			}
		})
	}
	all.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // libvirt gives up a call after 30
	defer cancel()
	for _, err := range []error{c.Pause(ctx, well), c.Resume(ctx, well)} {
		if err != nil {
			t.Errorf("a domain that is well: %v", err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Resume(short, hung[0]); err == nil || !strings.Contains(err.Error(), "an earlier call") {
		t.Errorf("a second call: %v", err)
	}
	for _, vm := range hung {
		libvirtd.Signal(vm, syscall.SIGCONT)
	}
	for _, vm := range hung { // in turn, behind the pause that nobody waited for
		if err := c.Resume(t.Context(), vm); err != nil {
			t.Errorf("resume: %v", err)
		}
		if s, err := c.State(t.Context(), vm); s != Running || err != nil {
			t.Errorf("%s, %v", s, err)
		}
	}
	n := c.of(well)
	await(t, "the connections that were left to hung calls to end", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.hung) == 0
	})
}
