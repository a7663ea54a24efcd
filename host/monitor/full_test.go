package monitor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// onSmallDisk puts the host's state on a file system of its own.
func (h *host) onSmallDisk(size string) {
	h.t.Helper()
	if os.Getuid() != 0 {
		h.t.Skip("mounts a file system: root")
	}
	state := filepath.Join(h.root, "state")
	enrolled, err := os.ReadFile(filepath.Join(state, "enroll", h.vm.String()+".json"))
	if err == nil {
		err = unix.Mount("outguard-test", state, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711,size="+size)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			h.t.Error(err)
		}
	})
	h.write(filepath.Join(state, "enroll", h.vm.String()+".json"), string(enrolled))
}

// fillUp leaves so many bytes free on the host's disk, until the returned free.
func (h *host) fillUp(name string, leave int64) (free func()) {
	h.t.Helper()
	path := filepath.Join(h.root, "state", name)
	var st unix.Statfs_t
	err := unix.Statfs(filepath.Dir(path), &st)
	if n := int64(st.Bavail)*st.Bsize - leave; err == nil && n > 0 {
		err = os.WriteFile(path, make([]byte, n), 0o600)
	}
	if leave == 0 && errors.Is(err, unix.ENOSPC) {
		err = nil // the monitor has written meanwhile: it is as full as it was to be
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			h.t.Error(err)
		}
	}
}

// TestDiskFull fills the disk up, to the reserve and then to the last byte: what
// the guest sends waits with it, what the monitor itself has to say goes on, and
// when there is room again the session goes on with everything there.
func TestDiskFull(t *testing.T) {
	for name, toTheLastByte := range map[string]bool{"to the reserve": false, "to the last byte": true} {
		t.Run(name, func(t *testing.T) {
			h := newMortal(t)
			h.beat("1s") // nobody is silent because the machine is slow
			h.onSmallDisk("40m")
			h.configureEvidence("{segment: 1MiB, reserve: 8MiB, sync: 50ms}")
			h.start()
			a := prototest.NewAgent(nil)
			stop := h.persistent(a)
			defer stop()
			send(t, a, opened("/etc/passwd"), opened(long), opened("/before"))
			h.seal()
			send(t, a, opened("/new"))
			h.awaitPaths([]string{"/new"})

			free := h.fillUp("somebody-elses", 9<<20)
			const flood = 4000 // 12 MiB
			sent := make(chan error, 1)
			go func() {
				var events []*vsockproto.Event
				for range flood {
					events = append(events, opened(long))
				}
				sent <- errors.Join(a.Send(t.Context(), events...), a.Send(t.Context(), opened("/last")))
			}()
			h.await("session/full")
			if toTheLastByte {
				defer h.fillUp("more", 0)()
			}
			received := h.received()
			time.Sleep(2500 * time.Millisecond) // long enough for an agent to be silent
			if now := h.received(); now != received || now >= flood {
				t.Errorf("%d records received on a full disk, then %d", received, now)
			}
			select {
			case err := <-sent:
				t.Errorf("the agent could send everything: %v", err)
			default:
			}
			if !toTheLastByte { // the order finds room in the reserve, and waits for libvirt
				_, _ = h.api.Pause(t.Context(), &apipb.PauseRequest{Vm: "web", Reason: "by hand"})
				h.order("pause", "waiting")
			}

			free()
			if err := errors.Join(<-sent, a.Drained(t.Context())); err != nil {
				t.Fatal(err)
			}
			h.await("session/room")
			h.awaitPaths([]string{"/new", "/last"})
			h.missing(t)
			if _, resumed := a.Welcome(); resumed {
				t.Error("it is not the same connection any more")
			}
			for _, f := range h.findings() {
				if f.Rule == "session/silent" || f.Rule == "session/gap" {
					t.Errorf("the host's disk is held against the guest: %v", f)
				}
			}
			stop()
			if err := h.end(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			h.verify()
			h.accountFor(4+flood+1, []string{"/new", "/last"})
		})
	}
}

// TestKilledOnAFullDisk: a monitor that starts on a full disk takes nothing from
// the agent, which has lost nothing when there is room.
func TestKilledOnAFullDisk(t *testing.T) {
	h := newMortal(t)
	h.onSmallDisk("40m")
	h.configureEvidence("{segment: 1MiB, reserve: 8MiB, sync: 50ms}")
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.persistent(a)
	defer stop()
	send(t, a, opened("/etc/passwd"))
	h.seal()
	free := h.fillUp("somebody-elses", 1<<20)
	h.eventually("the disk is seen to be full", func() error {
		return h.metric("outguard_evidence_full 1")
	})
	if err := a.Send(t.Context(), opened("/new")); err != nil {
		t.Fatal(err)
	}
	h.await("session/full")
	_ = h.end(syscall.SIGKILL)
	h.start()
	if r := h.read(); len(r.paths()) != 0 {
		t.Errorf("found on a full disk: %q", r.paths())
	}
	free()
	if err := a.Drained(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.awaitPaths([]string{"/new"})
	h.missing(t)
	stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
	h.accountFor(2, []string{"/new"})
}

// configureEvidence says how the record is kept.
func (h *host) configureEvidence(what string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(h.config, strings.Replace(string(text), "evidence: {segment: 1MiB}", "evidence: "+what, 1))
}

// received counts the VM's records.
func (h *host) received() (n uint64) {
	h.t.Helper()
	r, err := h.api.ListVMs(h.t.Context(), &apipb.ListVMsRequest{Vm: h.vm.String()})
	if err != nil || len(r.Vms) != 1 {
		h.t.Fatalf("vms: %v, %v", r, err)
	}
	for _, c := range r.Vms[0].Classes {
		n += c.Received
	}
	return n
}
