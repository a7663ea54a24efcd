package domain

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/outguard/outguard/host/domain/domaintest"
)

const twoLinks = `<interface type='user'><mac address='52:54:00:AA:00:01'/><model type='e1000e'/></interface>
<interface type='user'><mac address='52:54:00:aa:00:02'/><model type='e1000e'/><link state='down'/></interface>
`

func TestParseNetwork(t *testing.T) {
	n, err := parseNetwork(`<domain xmlns:qemu='x'><devices>` + twoLinks + `</devices></domain>`)
	if err != nil || len(n.links) != 2 || n.other != "" {
		t.Fatalf("%+v, %v", n, err)
	}
	if l := n.links[0]; l.MAC != "52:54:00:aa:00:01" || !l.Up ||
		l.with(false) != `<interface type='user'><mac address='52:54:00:AA:00:01'/><model type='e1000e'/><link state='down'/></interface>` {
		t.Errorf("%+v: %s", l, l.with(false))
	}
	if l := n.links[1]; l.Up || strings.Count(l.with(true), "<link ") != 1 || !strings.Contains(l.with(true), "<link state='up'/>") {
		t.Errorf("%+v: %s", l, l.with(true))
	}
	for args, want := range map[string]string{
		"<qemu:arg value='-netdev'/><qemu:arg value='user,id=n'/>": "-netdev user,id=n",
		"<qemu:arg value='-nic'/><qemu:arg value='none'/>":         "",
		"<qemu:arg value='-device'/><qemu:arg value='x'/>":         "",
	} {
		n, err := parseNetwork(`<domain xmlns:qemu='x'><qemu:commandline>` + args + `</qemu:commandline></domain>`)
		if err != nil || n.other != want {
			t.Errorf("%s: %q, %v", args, n.other, err)
		}
	}
}

// TestPassedThrough: of the host's own devices that a domain has, a network
// adapter is told from the rest by what the host's kernel says of it.
func TestPassedThrough(t *testing.T) {
	devices := t.TempDir()
	for at, class := range map[string]string{"0000:3b:10.2": "0x020000\n", "0000:01:00.0": "0x030000\n"} {
		if err := os.MkdirAll(filepath.Join(devices, at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(devices, at, "class"), []byte(class), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pci := func(bus, slot, function string) string {
		return "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='" + bus + "' slot='" + slot + "' function='" + function + "'/></source></hostdev>"
	}
	for device, want := range map[string]string{
		"":                         "",
		pci("0x3b", "0x10", "0x2"): "PCI device 0000:3b:10.2",
		pci("0x01", "0x00", "0x0"): "",                        // a display
		pci("0x02", "0x00", "0x0"): "PCI device 0000:02:00.0", // nobody can tell
		"<hostdev type='usb'/>":    "a USB device",
		"<hostdev type='scsi'/>":   "",
		"<hostdev type='mdev'/>":   "",
		"<interface type='user'/>": "",
	} {
		all, err := parsePassed("<domain><devices>" + device + "</devices></domain>")
		got := ""
		for i := range all {
			got += all[i].network(devices)
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v", device, got, err)
		}
	}
}

// TestLinks takes a guest's links down and up: virsh says so as well, a
// link that its owner took down stays so, and a domain that is started again
// has its links as they were left.
func TestLinks(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Devices: twoLinks})
	c, ctx := client(t), t.Context()
	up := func() []string {
		t.Helper()
		macs, err := c.LinksUp(ctx, g.UUID)
		if err != nil {
			t.Fatal(err)
		}
		return macs
	}
	first := []string{"52:54:00:aa:00:01"}
	if got := up(); !slices.Equal(got, first) {
		t.Fatalf("up at first: %q", got)
	}
	for range 2 { // the second finds it so
		if err := c.SetLinks(ctx, g.UUID, first, false); err != nil {
			t.Fatal(err)
		}
	}
	if got := up(); len(got) != 0 {
		t.Errorf("up after: %q", got)
	}
	if out := g.Virsh(t, "domif-getlink", first[0]); !strings.Contains(out, "down") {
		t.Errorf("virsh says %s", out)
	}
	g.Virsh(t, "destroy")
	if got := up(); len(got) != 0 {
		t.Errorf("up while off: %q", got)
	}
	g.Boot(t)
	if got := up(); len(got) != 0 {
		t.Errorf("up when started again: %q", got)
	}
	if err := c.SetLinks(ctx, g.UUID, first, true); err != nil {
		t.Fatal(err)
	}
	if got := up(); !slices.Equal(got, first) {
		t.Errorf("up in the end: %q", got)
	}
	if out := g.Virsh(t, "domif-getlink", "52:54:00:aa:00:02"); !strings.Contains(out, "down") {
		t.Errorf("the owner's link: %s", out)
	}
}

// TestPower resets a guest and destroys it.
func TestPower(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{})
	c, ctx := client(t), t.Context()
	events := watch(t, c)
	if err := c.Reset(ctx, g.UUID); err != nil {
		t.Fatal(err)
	}
	events.want(t, g.UUID, "rebooted")
	if err := c.Pause(ctx, g.UUID); err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(ctx, g.UUID); err != nil {
		t.Errorf("reset of a paused guest: %v", err)
	}
	if p, err := c.Paused(ctx, g.UUID); !p || err != nil {
		t.Errorf("paused %t after a reset, %v", p, err)
	}
	for range 2 {
		if err := c.Destroy(ctx, g.UUID); err != nil {
			t.Fatal(err)
		}
		if active, err := c.Active(ctx, g.UUID); active || err != nil {
			t.Errorf("active %t, %v", active, err)
		}
	}
	if err := c.Reset(ctx, g.UUID); !errors.Is(err, ErrNotRunning) {
		t.Errorf("reset while off: %v", err)
	}
	g.Virsh(t, "undefine")
	if err := c.Destroy(ctx, g.UUID); err != nil {
		t.Errorf("destroy of what is no more: %v", err)
	}
}
