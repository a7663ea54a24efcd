package vm

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/vmtests/image"
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

func TestGuestBootsAndServes(t *testing.T) {
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
	var body []byte
	for range 50 {
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/cgi-bin/search.cgi?q=bolt", g.Port))
		if err == nil {
			body, _ = io.ReadAll(r.Body)
			r.Body.Close()
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if want := "bolt M4 0.04\nbolt M6 0.07\n"; string(body) != want {
		t.Errorf("service says %q, want %q", body, want)
	}
	c, _ := g.Console()
	t.Log(tail(c, 15))
}
