package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/outguard/outguard/vmtests/attack"
	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/product"
	"github.com/outguard/outguard/vmtests/service"
	"github.com/outguard/outguard/vmtests/vm"
)

const (
	// domain is the guest that is watched.
	domain = "outguard-demo-web"
	// dir holds the guest's disks; what the product keeps is where it always is.
	dir   = "/var/lib/outguard-demo"
	cache = "/var/cache/outguard"
)

// Demo is one run.
type Demo struct {
	Bin string    // where the binaries were built
	Out io.Writer // for people

	began   time.Time
	img     *image.Image
	lab     *vm.Lab
	product *product.Install
	guest   *vm.Guest
	attack  attack.Result
	bundle  string
	result  Result
}

// Result is what the last line says.
type Result struct {
	Finding    string  `json:"finding"`     // id
	PausedMs   float64 `json:"paused_ms"`   // from the frame's arrival to the vCPUs' stop
	CapturedMs float64 `json:"captured_ms"` // from the frame's arrival to the end of the capture
	Bundle     string  `json:"bundle"`      // absolute
	Verified   bool    `json:"verified"`
}

// StepError is a step that did not work. Number counts from 1.
type StepError struct {
	Number int
	Name   string
	Err    error
}

func (e *StepError) Error() string { return fmt.Sprintf("step %d, %s: %v", e.Number, e.Name, e.Err) }

func (e *StepError) Unwrap() error { return e.Err }

// Run does everything and prints `demo: ok` and the result as its last line.
func (d *Demo) Run(ctx context.Context) error {
	d.began = time.Now()
	if os.Geteuid() != 0 {
		return &StepError{0, "start", errors.New("must run as root")}
	}
	for i, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"clear away an earlier demo", d.clear},
		{"choose what to run on", d.choose},
		{"install the product", d.install},
		{"make the guest and enrol it", d.enrol},
		{"start the monitor", d.startMonitor},
		{"boot the guest with its agent", d.boot},
		{"learn the normal traffic and seal the model", d.learn},
		{"the same traffic raises nothing", d.silence},
		{"attack the web service", d.exploit},
		{"the violation is found", d.found},
		{"the guest is paused and captured", d.captured},
		{"verify the bundle and the record", d.verify},
	} {
		began := time.Now()
		d.say("[%2d] %s", i+1, s.name)
		if err := s.do(ctx); err != nil {
			return &StepError{i + 1, s.name, err}
		}
		d.say("     done in %.1f s", time.Since(began).Seconds())
	}
	return d.end(ctx)
}

func (d *Demo) say(format string, args ...any) { fmt.Fprintf(d.Out, "demo: "+format+"\n", args...) }

func (d *Demo) clear(ctx context.Context) error { return Clean(ctx, io.Discard) }

func (d *Demo) choose(ctx context.Context) error {
	agent, err := image.FromHost("/usr/sbin/outguard-agent", 0o755, filepath.Join(d.Bin, "outguard-agent"))
	if err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	line, kernel, err := image.Kernel(cache)
	if err != nil {
		return err
	}
	if d.img, err = image.Build(ctx, filepath.Join(dir, "images"), &image.Options{Kernel: kernel, Files: []image.File{agent}}); err != nil {
		return err
	}
	d.lab, err = vm.Open(ctx, d.img, &vm.Options{Dir: dir, Cache: cache})
	if err != nil {
		return err
	}
	for _, c := range d.lab.Choices() {
		d.say("     %s", c)
	}
	d.say("     guest kernel: %s (Debian's own, as packaged; %s)", d.img.Release, whyKernel(line))
	if d.lab.Libvirt.Name == "started" {
		return os.WriteFile(libvirtStarted, nil, 0o644)
	}
	return nil
}

func whyKernel(line string) string {
	if os.Getenv("OUTGUARD_KERNEL") != "" {
		return "OUTGUARD_KERNEL asks for it"
	}
	return line + " is the newest of a release that is out, and records of opened files have their digest there"
}

// install takes the defaults, but for an emulated guest: on a machine that has other
// things to do it is slow to boot, and stands still for seconds.
func (d *Demo) install(ctx context.Context) (err error) {
	var f product.Files
	if d.lab.Accelerator.Name == "tcg" {
		f.Config = "# An emulated guest is slow to come up and to speak.\nsession:\n  heartbeat: 5s\n  grace: 10m\n"
		d.say("     heartbeat: 5 s instead of 1 s, since the guest is emulated")
	}
	d.product, err = product.New(ctx, product.Default(), d.Bin, f)
	return err
}

func (d *Demo) enrol(ctx context.Context) (err error) {
	if d.guest, err = d.lab.Define(ctx, vm.Spec{Name: domain, Image: d.img}); err != nil {
		return err
	}
	return enrol(ctx, d.product, d.guest)
}

// enrol enrols a guest and has its channel served.
func enrol(ctx context.Context, p *product.Install, g *vm.Guest) error {
	c, err := p.Enroll(ctx, g.Name, "")
	if err == nil && c.Vhost != "" {
		g.Serve(&vm.Channel{CID: c.CID, Control: c.Vhost, Socket: c.Socket})
	}
	return err
}

func (d *Demo) startMonitor(ctx context.Context) error {
	if err := d.product.StartMonitor(ctx); err != nil {
		return err
	}
	d.say("     outguardd runs as user outguard, its messages in %s", d.product.LogFile())
	return nil
}

func (d *Demo) boot(ctx context.Context) error {
	if err := d.guest.Start(ctx); err != nil {
		return err
	}
	if err := service.Wait(ctx, d.guest.Port, 10*time.Minute); err != nil {
		return err
	}
	var v product.VM
	err := d.await(ctx, 5*time.Minute, "the agent to attach", func() (done bool, err error) {
		if v, err = d.product.VM(ctx, domain); err != nil {
			return false, err
		}
		live, missing := v.Attached()
		return live && len(missing) == 0, nil
	})
	if err != nil {
		return err
	}
	d.say("     agent %s on kernel %s, %d hooks", v.Session.Build, v.Session.Kernel, len(v.Session.Hooks))
	d.say("     web service at http://127.0.0.1:%d/", d.guest.Port)
	return nil
}

func (d *Demo) learn(ctx context.Context) error {
	m, err := d.product.Learn(ctx, domain, d.guest.Port)
	if err != nil {
		return err
	}
	d.say("     %d security state points out of %d events, sealed", m.Points, m.Events)
	return nil
}

func (d *Demo) silence(ctx context.Context) error {
	if err := d.product.Visit(ctx, domain, d.guest.Port, 3); err != nil {
		return err
	}
	found, err := d.product.Findings(ctx, domain, "medium")
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("%d findings, the first: %s: %s", len(found), found[0].Rule, found[0].Reason)
	}
	if state, err := d.guest.State(ctx); err != nil || state != "running" {
		return fmt.Errorf("the guest is %s, want running (%v)", state, err)
	}
	return nil
}

func (d *Demo) exploit(ctx context.Context) (err error) {
	if d.attack, err = attack.Run(ctx, d.guest.Port, 3*time.Second); err != nil {
		return err
	}
	d.say("     dropped %s (SHA-256 %s...) through the search form and ran it", d.attack.Path, d.attack.SHA256[:16])
	if d.attack.Called {
		d.say("     it reached the attacker before the guest stood still")
	} else {
		d.say("     the guest stood still before it reached the attacker")
	}
	return nil
}

func (d *Demo) found(ctx context.Context) error {
	return d.await(ctx, 2*time.Minute, "a finding", func() (bool, error) {
		all, err := d.product.Findings(ctx, domain, "high")
		for _, f := range all {
			if f.Engine == "tsem" {
				d.say("     %s %s: %s", f.Engine, f.Rule, f.Reason)
				return true, nil
			}
		}
		return false, err
	})
}

func (d *Demo) captured(ctx context.Context) error {
	var capture product.Order
	err := d.await(ctx, 5*time.Minute, "the capture to end", func() (ok bool, err error) {
		capture, ok, err = d.product.Captured(ctx, domain)
		return ok, err
	})
	if err != nil {
		return err
	}
	state, err := d.guest.State(ctx)
	if err != nil || state != "paused" {
		return fmt.Errorf("libvirt says that the guest is %s, want paused (%v)", state, err)
	}
	d.bundle, d.result.Finding, d.result.Bundle = capture.Bundle, capture.Finding, capture.Bundle
	text, err := d.product.CLI(ctx, "bundle", "show", "--json", d.bundle) // a directory or one file
	if err != nil {
		return err
	}
	return d.readTimeline([]byte(text))
}

// readTimeline takes the times out of what a bundle shows.
func (d *Demo) readTimeline(text []byte) error {
	var shown struct {
		Timeline struct {
			Entries []struct {
				What          string   `json:"what"`
				SinceReceived *float64 `json:"since_received_ns"`
			} `json:"entries"`
		} `json:"timeline"`
	}
	if err := json.Unmarshal(text, &shown); err != nil {
		return fmt.Errorf("outguard bundle show: %w", err)
	}
	at := map[string]float64{}
	for _, e := range shown.Timeline.Entries {
		if _, seen := at[e.What]; !seen && e.SinceReceived != nil {
			at[e.What] = *e.SinceReceived / 1e6
		}
	}
	for _, step := range []string{"finding", "decision", "paused", "captured"} {
		if _, ok := at[step]; !ok {
			return fmt.Errorf("the timeline tells no time of %q", step)
		}
	}
	d.result.PausedMs, d.result.CapturedMs = at["paused"], at["captured"]
	return nil
}

// verify uses the installed command line, with nothing but the directory: that
// is what a person would type.
func (d *Demo) verify(ctx context.Context) error {
	if _, err := d.product.CLI(ctx, "evidence", "verify"); err != nil {
		return err
	}
	if _, err := d.product.CLI(ctx, "bundle", "verify", d.bundle); err != nil {
		return err
	}
	d.result.Verified = true
	return nil
}

func (d *Demo) end(ctx context.Context) error {
	text, err := d.product.CLI(ctx, "bundle", "show", d.bundle)
	if err != nil {
		return err
	}
	told, _, _ := strings.Cut(text, "\nPART ") // what follows are its files
	fmt.Fprintf(d.Out, "\n%s\n", told)
	fmt.Fprintf(d.Out, "The bundle is in %s\nThe guest is paused. To look further:\n\n", d.bundle)
	for _, c := range []string{"vms", "findings", "orders", "events --vm " + domain + " --path " + d.attack.Path,
		"bundle show " + d.bundle, "bundle verify " + d.bundle, "evidence verify", "resume " + domain} {
		fmt.Fprintf(d.Out, "  bin/outguard %s\n", c)
	}
	page := filepath.Join(d.bundle, "report.html")
	if _, err := os.Stat(page); err == nil { // else it is in an archive
		fmt.Fprintf(d.Out, "\nAll of it on one page, for a browser: %s\n", page)
	}
	fmt.Fprintln(d.Out, "docs/INCIDENT.md goes through it step by step.")
	fmt.Fprintln(d.Out, "\nResumed, the intruder's program goes on, and its next step stops the guest again.")
	line, err := json.Marshal(d.result)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.Out, "\nmake demo-clean takes all of it away. This took %.0f s.\n", time.Since(d.began).Seconds())
	fmt.Fprintf(d.Out, "demo: ok %s\n", line)
	return nil
}

// await asks until the answer is yes or an error, for at most within.
func (d *Demo) await(ctx context.Context, within time.Duration, what string, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		if done, err := ask(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s", within, what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
