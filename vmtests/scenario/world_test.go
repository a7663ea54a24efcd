package scenario

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/product"
	"github.com/outguard/outguard/vmtests/vm"
)

const cache = "/var/cache/outguard"

// world is what the scripts share.
type world struct {
	clone   string // its directory
	site    vm.Site
	layout  product.Layout
	kernel  string // line of the guests' kernel
	lab     *vm.Lab
	img     *image.Image
	install *product.Install
	guests  map[string]*vm.Guest
	bundles map[string]bool // directories that scripts have seen
	crowd   *crowd          // nil: none is there
	clients map[string]net.Conn
	path    string // directory with this world's `outguard`
}

// promised tells whether OUTGUARD_REQUIRE names a capability: what is promised
// and missing is a failure, not a skip.
func promised(what string) bool {
	return slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), what)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if !promised("libvirt") {
		t.Skip("boots guests: set OUTGUARD_REQUIRE=libvirt (make test does)")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	site, err := vm.Here()
	if err != nil {
		t.Fatal(err)
	}
	release, err := site.Claim()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release() })
	w := &world{clone: root, site: site, layout: product.Under(filepath.Join(site.Dir, "product")), guests: map[string]*vm.Guest{}, bundles: map[string]bool{}, clients: map[string]net.Conn{}, path: t.TempDir()}
	if err := product.Remove(t.Context(), w.layout); err != nil { // what a killed run left
		t.Fatal(err)
	}
	line, kernel, err := image.Kernel(cache)
	if err != nil {
		t.Fatal(err)
	}
	w.kernel = line
	t.Cleanup(func() {
		if w.install != nil && w.install.Manager != nil {
			if err := w.install.Manager.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	if w.img, err = image.Build(t.Context(), filepath.Join(cache, "images"), &image.Options{Kernel: kernel, Files: w.guestFiles(t, kernel)}); err != nil {
		t.Fatal(err)
	}
	t.Logf("guest kernel: %s", w.img.Release)
	w.lab, err = vm.Open(t.Context(), w.img, &vm.Options{Dir: site.Dir, Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range w.lab.Choices() {
		t.Log(c)
	}
	return w
}

// guestFiles are the agent, the programs that run inside a guest, and what of
// its kernel they have loaded.
func (w *world) guestFiles(t *testing.T, kernel string) []image.File {
	t.Helper()
	modules, err := image.ModuleFiles(kernel, "tun")
	if err != nil {
		t.Fatal(err)
	}
	agent, err := image.FromHost("/usr/sbin/outguard-agent", 0o755, filepath.Join(w.clone, "bin", "outguard-agent"))
	if err != nil {
		t.Fatalf("%v (make build makes it)", err)
	}
	task := "#!/bin/sh\ncd /tmp && OUTGUARD_REQUIRE=vsock-loopback exec /usr/lib/outguard-tests/listen.test -test.v -test.run 'Vsock|VSOCK'\n"
	return slices.Concat(crunFiles(t), modules, []image.File{
		agent,
		w.compiled(t, "/usr/lib/outguard-tests/listen.test", "test", "-c", "./host/listen"),
		w.compiled(t, "/usr/bin/outguard-poke", "build", "./vmtests/cmd/outguard-poke"),
		w.compiled(t, "/usr/bin/outguard-versions", "build", "./vmtests/cmd/outguard-versions"),
		w.compiled(t, "/usr/bin/outguard-hooks", "build", "./vmtests/cmd/outguard-hooks"),
		{Path: "/etc/tasks/listen", Mode: 0o755, Data: []byte(task)},
	})
}

// compiled is a program of this module, static, to stand at path in the guest.
func (w *world) compiled(t *testing.T, path, verb string, args ...string) image.File {
	t.Helper()
	f, err := image.Compile(t.Context(), w.clone, path, verb, args...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// ensureInstalled installs the product, once.
func (w *world) ensureInstalled(ctx context.Context) error {
	if w.install != nil {
		return nil
	}
	p, err := product.New(ctx, w.layout, filepath.Join(w.clone, "bin"), product.Files{Config: w.config(), Playbook: playbook})
	if err != nil {
		return err
	}
	if p.Manager, err = product.NewManager(w.layout.Run); err != nil {
		return err
	}
	w.install = p
	wrapper := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" --config %s\n", filepath.Join(p.Lib, "outguard"), p.ConfigFile())
	return os.WriteFile(filepath.Join(w.path, "outguard"), []byte(wrapper), 0o755)
}

// config is the defaults below other roots. On a machine that has other things to
// do an emulated guest may take minutes to boot, and stand still for seconds: with
// this heartbeat it is silent after nine.
func (w *world) config() string {
	return fmt.Sprintf("state_dir: %s\nrun_dir: %s\nplaybook: %s\nsession:\n  grace: 600s\n  heartbeat: 5s\n", w.layout.State, w.layout.Run, filepath.Join(w.layout.Config, "playbook.yaml"))
}

// playbook is the built-in one, but for guests called ...-watched, which go on
// whatever is found of them.
const playbook = `version: 1
rules:
  - name: watched
    match: {vm: "*-watched"}
    steps: [log]
    once_per: event
  - name: violation
    match: {engine: tsem, severity: high}
    steps: [log, pause, capture]
    once_per: run
  - name: lying-guest
    match: {engine: monitor, severity: critical}
    steps: [log, pause, capture]
    once_per: run
`

func (w *world) remove(t *testing.T) {
	ctx, cancel := bounded()
	defer cancel()
	if w.crowd != nil {
		w.crowd.end()
	}
	for _, g := range w.guests {
		if err := g.Remove(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := product.Remove(ctx, w.layout); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(w.site.Dir); err != nil {
		t.Error(err)
	}
}

// keep saves consoles and logs with a failed test, and tells what the monitor says
// of each guest.
func (w *world) keep(t *testing.T) {
	w.tell(t)
	files := []string{w.layout.State + "/outguardd.log"}
	for _, g := range w.guests {
		files = append(files, filepath.Join(g.Dir(), "console.log"), filepath.Join(g.Dir(), "vsock.log"))
	}
	for _, from := range files {
		b, err := os.ReadFile(from)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		to := filepath.Join(t.ArtifactDir(), filepath.Base(filepath.Dir(from))+"-"+filepath.Base(from))
		if err == nil {
			err = os.WriteFile(to, b, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		// A guest that panics boots again, and its console goes on.
		if i := slices.IndexFunc(lines, func(l string) bool {
			return strings.Contains(l, "] Oops: ") || strings.Contains(l, "] Kernel panic ") || strings.Contains(l, "] BUG: ")
		}); i >= 0 {
			t.Logf("%s tells of a kernel in trouble:\n%s", from, strings.Join(lines[i:min(len(lines), i+25)], "\n"))
		}
		t.Logf("%s ends:\n%s", from, strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

// tell shows what the monitor found of the guests, and what became of its orders.
func (w *world) tell(t *testing.T) {
	if w.install == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for name := range w.guests {
		for _, args := range [][]string{{"vms", name}, {"findings", "--vm", name}, {"orders", "--vm", name}} {
			text, err := w.install.CLI(ctx, args...)
			if err != nil {
				t.Log(err)
				continue
			}
			lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
			t.Logf("outguard %s ends:\n%s", strings.Join(args, " "), strings.Join(lines[max(0, len(lines)-15):], "\n"))
		}
	}
}
