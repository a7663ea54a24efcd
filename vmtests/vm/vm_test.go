package vm

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/vmtests/attack"
	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/service"
)

// need skips where no guest can be run, and fails where that is promised.
func need(t *testing.T) {
	t.Helper()
	promised := slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "libvirt")
	if !promised {
		t.Skip("boots guests: set OUTGUARD_REQUIRE=libvirt")
	}
	for _, tool := range []string{"virsh", "qemu-system-x86_64", "mke2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("promised, but missing: %s (.ci/install vm)", tool)
		}
	}
}

func TestGuestServesAndFalls(t *testing.T) {
	need(t)
	img, err := image.Build(t.Context(), "/var/cache/outguard/images", nil)
	if err != nil {
		t.Fatal(err)
	}
	lab, err := Open(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range lab.Choices() {
		t.Log(c)
	}
	g, err := lab.Define(t.Context(), Spec{Name: "outguard-test-boot", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := g.WaitConsole(t.Context(), "guest: up", time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("up in %s", time.Since(began))
	if err := service.Wait(t.Context(), g.Port, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := service.Visit(t.Context(), g.Port, 1); err != nil {
		t.Error(err)
	}
	r, err := attack.Run(t.Context(), g.Port, 20*time.Second)
	if err != nil || !r.Called {
		c, _ := g.Console()
		t.Errorf("attack: %+v, %v, want a call; console:\n%s", r, err, tail(c, 20))
	}
	t.Logf("the attacker's program called %s after the request", time.Since(r.Sent).Round(time.Millisecond))
}
