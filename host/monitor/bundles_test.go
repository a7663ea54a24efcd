package monitor_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/domain/domaintest"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/failpoint"
)

// encrypted has the host's captures made archives for the returned identity.
func (h *host) encrypted() *age.X25519Identity {
	h.t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		h.t.Fatal(err)
	}
	h.configure("bundles: {form: archive, recipients: [" + id.Recipient().String() + "]}\n")
	return id
}

// capture asks for one, and returns the order's last word.
func (h *host) capture() (o *apipb.Order, err error) {
	h.t.Helper()
	s, err := h.api.Capture(h.t.Context(), &apipb.CaptureRequest{Vm: h.vm.String()})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for s.Receive() {
		if s.Msg().Order != nil {
			o = s.Msg().Order
		}
	}
	return o, s.Err()
}

// onlyArchive holds that an archive and its label are all that there is of
// captures, and that it verifies.
func (h *host) onlyArchive(path string, id age.Identity) {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.root, "state", evidence.BundlesDir))
	if err != nil {
		h.t.Fatal(err)
	}
	name := filepath.Base(path)
	if len(entries) != 2 || entries[0].Name() != name || entries[1].Name() != name+bundle.LabelSuffix {
		h.t.Errorf("beside %s: %v", name, entries)
	}
	v, err := evidence.LoadVerifier(filepath.Join(h.root, "state", evidence.PubFile))
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := bundle.VerifyArchive(h.t.Context(), path, v, &bundle.ArchiveOptions{Identities: []age.Identity{id}})
	if err != nil || r.Manifest.VM != h.vm {
		h.t.Errorf("%+v, %v", r, err)
	}
	all, err := h.api.ListBundles(h.t.Context(), &apipb.ListBundlesRequest{})
	if err != nil || len(all.Bundles) != 1 || all.Bundles[0].Dir != path || all.Bundles[0].Order != r.Manifest.Order || all.Bundles[0].Bytes < 32<<20 {
		h.t.Errorf("%v, %v", all, err)
	}
}

// TestCaptureIsAnArchive: the order's result is the file, which the recipient can
// read and the host lists, pins and gives up without being able to.
func TestCaptureIsAnArchive(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newHost(t)
	id := h.encrypted()
	h.withLibvirt(l)
	h.start()
	o, err := h.capture()
	if err != nil || !strings.HasSuffix(o.Bundle, bundle.ArchiveSuffix+bundle.EncryptedSuffix) {
		t.Fatalf("%v, %v", o, err)
	}
	h.onlyArchive(o.Bundle, id)
	p, err := h.api.PinBundle(t.Context(), &apipb.PinBundleRequest{Id: filepath.Base(o.Bundle), Pinned: true})
	if err != nil || !p.Bundle.Pinned || p.Bundle.Id+bundle.ArchiveSuffix+bundle.EncryptedSuffix != filepath.Base(o.Bundle) {
		t.Errorf("%v, %v", p, err)
	}
	none := uint64(0)
	if r, err := h.api.PruneBundles(t.Context(), &apipb.PruneBundlesRequest{Keep: &none}); err != nil || len(r.Bundles) != 0 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := h.api.PinBundle(t.Context(), &apipb.PinBundleRequest{Id: p.Bundle.Id}); err != nil {
		t.Fatal(err)
	}
	if r, err := h.api.PruneBundles(t.Context(), &apipb.PruneBundlesRequest{Keep: &none}); err != nil || len(r.Bundles) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Bundle), "2*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// TestCaptureWithoutRoomToPack: what cannot be packed stays a directory, the
// order is done, and a finding says that it is not encrypted.
func TestCaptureWithoutRoomToPack(t *testing.T) {
	l := domaintest.NewPrivate(t)
	h := newHost(t)
	h.encrypted()
	h.configure("captures: {budget: 64MiB}\n") // each takes 32 MiB of memory, and may take 48 MiB
	h.withLibvirt(l)
	h.start()
	o, err := h.capture()
	if err != nil || bundle.IsArchive(o.Bundle) {
		t.Fatalf("%v, %v", o, err)
	}
	if f := h.await("capture/not-packed"); f.Detail["capture"] != filepath.Base(o.Bundle) || !strings.Contains(f.Reason, "not encrypted") {
		t.Errorf("%+v", f)
	}
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// TestKilledWhilePacking kills the monitor at each step of making an archive of a
// capture: the next one finds the capture, whole, and comes to the end of it.
func TestKilledWhilePacking(t *testing.T) {
	l := domaintest.NewPrivate(t)
	for _, p := range packing {
		t.Run(string(p), func(t *testing.T) {
			h := newMortal(t)
			id := h.encrypted()
			h.withLibvirt(l)
			h.start()
			h.arm(p)
			if o, err := h.capture(); err == nil {
				t.Fatalf("%v", o)
			}
			h.died(p)
			h.start()
			o := h.order("capture", "done")
			if !o.Recovered || o.Already != (p == failpoint.Packed) {
				t.Errorf("%v", o)
			}
			h.onlyArchive(o.Bundle, id)
			if err := h.end(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			h.verify()
		})
	}
}
