package scenario

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/outguard/outguard/vmtests/attack"
	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/service"
	"github.com/outguard/outguard/vmtests/vm"
)

func TestScenarios(t *testing.T) {
	w := newWorld(t)
	defer w.remove(t)
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	for _, script := range scripts {
		// testscript plays the scripts of one call side by side.
		ok := t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					w.keep(t)
				}
			}()
			t.Run("play", func(t *testing.T) { testscript.Run(t, w.params(script)) })
		})
		if !ok {
			t.Fatalf("%s did not end well, and the scripts after it stand on what it leaves", script)
		}
	}
}

func (w *world) params(script string) testscript.Params {
	return testscript.Params{
		Files:               []string{script},
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", w.path+":"+os.Getenv("PATH"))
			e.Setenv("STATE", w.layout.State)
			e.Setenv("CONFIG", w.layout.ConfigFile())
			e.Setenv("FLOOD", "60000")
			if promised("long") {
				e.Setenv("FLOOD", "1000000")
			}
			e.Setenv("LAB", w.site.Prefix)
			e.Setenv("FILES", filepath.Join(w.clone, "vmtests", "image", "files"))
			return nil
		},
		Condition: w.condition,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"install": func(ts *testscript.TestScript, neg bool, args []string) {
				usage(ts, !neg && len(args) == 0, "install")
				ctx, cancel := bounded()
				defer cancel()
				ts.Check(w.ensureInstalled(ctx))
			},
			"monitor": w.monitor,
			"guest":   w.guest,
			"enroll":  w.enroll,
			"client":  w.client,
			"console": w.console,
			"root":    w.root,
			"visit":   w.visit,
			"heard":   w.heard,
			"crowd":   w.crowdDo,
			"knock":   w.knock,
			"learn":   w.learn,
			"attack":  w.attack,
			"capture": w.capture,
			"digests": w.digests,
			"memory":  w.memory,
			"hooks":   w.hooks,
			"acted":   w.acted,
			"steady":  w.steady,
			"until":   until,
		},
	}
}

// condition answers [kernel:6.1], of the guests' kernel, and [matrix], whether
// every scenario is to be played: make test leaves some to make test-kernels.
func (w *world) condition(cond string) (bool, error) {
	if cond == "matrix" {
		return promised("matrix"), nil
	}
	line, ok := strings.CutPrefix(cond, "kernel:")
	if !ok || !slices.Contains(image.Kernels, line) {
		return false, fmt.Errorf("condition %q: want kernel: and one of %s", cond, strings.Join(image.Kernels, ", "))
	}
	return line == w.kernel, nil
}

func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func (w *world) monitor(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "monitor start|stop|kill")
	ctx, cancel := bounded()
	defer cancel()
	ts.Check(w.ensureInstalled(ctx))
	switch args[0] {
	case "start":
		ts.Check(w.install.StartMonitor(ctx))
	case "stop":
		ts.Check(w.install.StopMonitor(ctx))
	case "kill":
		ts.Check(w.install.KillMonitor(ctx))
	default:
		ts.Fatalf("monitor %s: none of start, stop, kill", args[0])
	}
}

func (w *world) guest(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2 && (!neg || args[0] == "state"), "guest define|start|stop|pause|resume|stall|unstall|remove|state NAME ...")
	ctx, cancel := bounded()
	defer cancel()
	verb, name := args[0], args[1]
	if verb == "define" {
		usage(ts, w.guests[name] == nil, "guest define NAME, of a new guest")
		ts.Check(w.ensureInstalled(ctx)) // the sockets' directory is the monitor's
		g, err := w.lab.Define(ctx, vm.Spec{Name: name, Image: w.img, Cmdline: args[2:], Root: true})
		ts.Check(err)
		w.guests[name] = g
		return
	}
	g := w.known(ts, name)
	switch verb {
	case "start":
		ts.Check(g.Start(ctx))
	case "stop":
		ts.Check(g.Stop(ctx))
	case "pause":
		ts.Check(g.Suspend(ctx))
	case "resume":
		ts.Check(g.Resume(ctx))
	case "stall":
		ts.Check(g.Stall(true))
	case "unstall":
		ts.Check(g.Stall(false))
	case "remove":
		ts.Check(g.Remove(ctx))
		delete(w.guests, name)
	case "state":
		usage(ts, len(args) >= 3, "guest state NAME WORD [WAIT]")
		w.state(ts, neg, g, args[2], wait(ts, args, 3))
	default:
		ts.Fatalf("guest %s: no such verb", verb)
	}
}

func (w *world) enroll(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 1 || len(args) == 2), "enroll NAME [TRANSPORT]")
	g := w.known(ts, args[0])
	ctx, cancel := bounded()
	defer cancel()
	c, err := w.install.Enroll(ctx, g.Name, append(args, "")[1])
	ts.Check(err)
	if ts.Setenv("SOCKET", c.Socket); c.Vhost == "" {
		g.Serve(nil)
	}
	if c.Vhost != "" {
		g.Serve(&vm.Channel{CID: c.CID, Control: c.Vhost, Socket: c.Socket})
	}
}

// client is somebody on the host who connects to a socket as well.
func (w *world) client(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "client SOCKET FILE|leave")
	if args[1] == "leave" {
		usage(ts, w.clients[args[0]] != nil, "client SOCKET FILE, before it leaves")
		ts.Check(w.clients[args[0]].Close())
		delete(w.clients, args[0])
		return
	}
	c, err := net.Dial("unix", args[0])
	ts.Check(err)
	w.clients[args[0]] = c
	_, err = c.Write([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
}

func (w *world) known(ts *testscript.TestScript, name string) *vm.Guest {
	g := w.guests[name]
	if g == nil {
		ts.Fatalf("no guest %s: guest define makes it", name)
	}
	return g
}

func (w *world) state(ts *testscript.TestScript, neg bool, g *vm.Guest, want string, within time.Duration) {
	ctx, cancel := bounded()
	defer cancel()
	var got string
	ok := poll(within, func() bool {
		var err error
		got, err = g.State(ctx)
		ts.Check(err)
		return (got == want) != neg
	})
	if !ok {
		ts.Fatalf("%s is %s after %s", g.Name, got, within)
	}
}

func (w *world) console(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "console NAME TEXT [WAIT]")
	_, err := w.known(ts, args[0]).WaitConsole(context.Background(), args[1], wait(ts, args, 2)) // reads a file
	ts.Check(err)
}

func (w *world) root(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2 || len(args) == 3, "root NAME COMMAND [WAIT]")
	out, status, err := w.known(ts, args[0]).Root(context.Background(), args[1], wait(ts, args, 2))
	ts.Logf("%s", out)
	ts.Check(err)
	if (status != 0) != neg {
		ts.Fatalf("%s: status %d", args[1], status)
	}
	ts.Check(os.WriteFile(ts.MkAbs("root.out"), []byte(out), 0o644))
}

func (w *world) visit(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 1 || len(args) == 2 || len(args) == 3 && args[2] == "unheard"), "visit NAME [ROUNDS [unheard]]")
	rounds := 1
	if len(args) > 1 {
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		rounds = n
	}
	ctx, cancel := bounded()
	defer cancel()
	g := w.known(ts, args[0])
	ts.Check(service.Wait(ctx, g.Port, 3*time.Minute))
	if len(args) == 3 {
		ts.Check(service.Visit(ctx, g.Port, rounds))
		return
	}
	ts.Check(w.install.Visit(ctx, g.Name, g.Port, rounds))
}

// heard waits until all that the guest has done is judged.
func (w *world) heard(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "heard NAME")
	ctx, cancel := bounded()
	defer cancel()
	g := w.known(ts, args[0])
	ts.Check(w.install.Heard(ctx, g.Name, "/tmp/heard", time.Now(), 0, func(ctx context.Context) error {
		_, _, err := g.Root(ctx, ": >/tmp/heard", time.Minute)
		return err
	}))
}

// knock asks for a page whose answer may never come: the question stops the
// guest.
func (w *world) knock(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "knock NAME PATH")
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", w.known(ts, args[0]).Port, args[1]))
	if err == nil {
		err = resp.Body.Close()
	}
	ts.Logf("%s: %v", args[1], err)
}

func (w *world) learn(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "learn NAME")
	g := w.known(ts, args[0])
	ctx, cancel := context.WithTimeout(context.Background(), 3*longest)
	defer cancel()
	m, err := w.install.Learn(ctx, g.Name, g.Port)
	ts.Check(err)
	ts.Logf("%d points out of %d events", m.Points, m.Events)
}

// capture waits for a bundle that no script has been given yet.
func (w *world) capture(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 1, "capture NAME [WAIT]")
	ctx, cancel := bounded()
	defer cancel()
	var dir string
	within := wait(ts, args, 1)
	ok := poll(within, func() bool {
		o, ok, err := w.install.Captured(ctx, args[0])
		ts.Check(err)
		dir = o.Bundle
		return ok && !w.bundles[dir]
	})
	if !ok {
		text, err := w.install.CLI(ctx, "orders", "--vm", args[0])
		ts.Fatalf("no new bundle of %s within %s; its orders (%v):\n%s", args[0], within, err, text)
	}
	w.bundles[dir] = true
	ts.Setenv("BUNDLE", dir)
}

func (w *world) attack(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 1 || len(args) == 2 && args[1] == "called"), "attack NAME [called]")
	ctx, cancel := bounded()
	defer cancel()
	r, err := attack.Run(ctx, w.known(ts, args[0]).Port, 15*time.Second)
	ts.Check(err)
	if len(args) == 2 && !r.Called {
		ts.Fatalf("the attacker's program did not call")
	}
	ts.Setenv("ATTACK_PATH", r.Path)
	ts.Setenv("ATTACK_SHA256", r.SHA256)
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 3, "until WAIT REGEXP PROGRAM [ARG...]")
	within, err := time.ParseDuration(args[0])
	ts.Check(err)
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var last string
	ctx, cancel := context.WithTimeout(context.Background(), within+time.Minute) // also of a question that nobody answers
	defer cancel()
	ok := poll(within, func() bool {
		cmd := exec.CommandContext(ctx, lookPath(ts, args[2]), args[3:]...)
		cmd.Dir, cmd.Env = ts.Getenv("WORK"), append(os.Environ(), "PATH="+ts.Getenv("PATH"), "LAB="+ts.Getenv("LAB"), "STATE="+ts.Getenv("STATE"))
		cmd.WaitDelay = time.Second // what a shell has started may keep its output
		out, err := cmd.CombinedOutput()
		last = fmt.Sprintf("%s(%v)", out[max(0, len(out)-2000):], errors.Join(err, ctx.Err()))
		return err == nil && re.Match(out)
	})
	if !ok {
		ts.Fatalf("%s: no match of %s within %s; the last output:\n%s", strings.Join(args[2:], " "), args[1], within, last)
	}
}

// lookPath finds a program along the script's PATH, which is not this
// process's.
func lookPath(ts *testscript.TestScript, name string) string {
	for _, d := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(d, name)
		if _, err := os.Stat(path); err == nil {
			return path
		} else if !errors.Is(err, fs.ErrNotExist) {
			ts.Check(err)
		}
	}
	ts.Fatalf("%s: not on PATH", name)
	return ""
}

// wait is the duration at args[i], or two minutes.
func wait(ts *testscript.TestScript, args []string, i int) time.Duration {
	if len(args) <= i {
		return 2 * time.Minute
	}
	d, err := time.ParseDuration(args[i])
	ts.Check(err)
	return d
}

// longest is how long a step may take that is over at once where nobody waits for
// the machine: one that hangs is to fail, with its name, before the whole run does.
const longest = 5 * time.Minute

func bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), longest)
}

// poll asks until the answer is yes, for at most d.
func poll(d time.Duration, yes func() bool) bool {
	for end := time.Now().Add(d); ; time.Sleep(100 * time.Millisecond) {
		if yes() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}
