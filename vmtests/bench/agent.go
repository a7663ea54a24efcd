package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/product"
	"github.com/outguard/outguard/vmtests/service"
	"github.com/outguard/outguard/vmtests/vm"
)

const (
	guestName = "outguard-test-bench"
	labDir    = "/var/lib/outguard-bench"
)

// residentCGI tells the agent's memory, in the guest.
const residentCGI = `#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
grep -E '^Vm(RSS|HWM)' "/proc/$(pidof outguard-agent)/status"
`

// Resident is the memory of an agent at work, in KiB: now and at most.
type Resident struct{ Now, Peak int }

// AgentResident boots a guest under the whole product, has its service visited
// and asks how much memory the agent holds. bin is where the binaries are.
func AgentResident(ctx context.Context, bin string) (r Resident, err error) {
	layout := product.Under(labDir)
	defer func() {
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, product.Remove(ctx, layout), vm.RemoveGuest(ctx, &vm.Options{Dir: labDir}, guestName), os.RemoveAll(labDir))
	}()
	if err := product.Remove(ctx, layout); err != nil { // what a killed run left
		return r, err
	}
	agent, err := image.FromHost("/usr/sbin/outguard-agent", 0o755, filepath.Join(bin, "outguard-agent"))
	if err != nil {
		return r, err
	}
	cgi := image.File{Path: "/srv/www/cgi-bin/resident.cgi", Mode: 0o755, Data: []byte(residentCGI)}
	img, err := image.Build(ctx, filepath.Join(labDir, "images"), &image.Options{Files: []image.File{agent, cgi}})
	if err != nil {
		return r, err
	}
	lab, err := vm.Open(ctx, img, &vm.Options{Dir: labDir})
	if err != nil {
		return r, err
	}
	p, err := product.New(ctx, layout, bin, product.Files{Config: fmt.Sprintf("state_dir: %s\nrun_dir: %s\n", layout.State, layout.Run)})
	if err != nil {
		return r, err
	}
	g, err := lab.Define(ctx, vm.Spec{Name: guestName, Image: img})
	if err != nil {
		return r, err
	}
	return resident(ctx, p, g)
}

func resident(ctx context.Context, p *product.Install, g *vm.Guest) (r Resident, err error) {
	c, err := p.Enroll(ctx, g.Name, "")
	if err != nil {
		return r, err
	}
	if c.Vhost != "" {
		g.Serve(&vm.Channel{CID: c.CID, Control: c.Vhost, Socket: c.Socket})
	}
	if err := p.StartMonitor(ctx); err != nil {
		return r, err
	}
	if err := g.Start(ctx); err != nil {
		return r, err
	}
	if _, err := g.WaitConsole(ctx, "msg=connected", 3*time.Minute); err != nil {
		return r, err
	}
	if err := service.Wait(ctx, g.Port, time.Minute); err != nil {
		return r, err
	}
	if err := service.Visit(ctx, g.Port, 20); err != nil {
		return r, err
	}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/cgi-bin/resident.cgi", g.Port))
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil {
		_, err = fmt.Sscanf(string(text), "VmHWM: %d kB\nVmRSS: %d kB\n", &r.Peak, &r.Now)
	}
	if err != nil {
		return r, fmt.Errorf("the agent's memory: %w: %q", err, text)
	}
	return r, nil
}
