package domain

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

const plainXML = `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>5f6d0c9e-1c1f-4a6e-9a53-0a51d1b2c3d4</uuid>
  <memory unit='KiB'>262144</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <sysinfo type='fwcfg'><entry name='opt/other'>kept</entry></sysinfo>
  <devices>
    <interface type='user'><mac address='52:54:00:00:00:01'/><address type='pci' domain='0x0000' bus='0x00' slot='0x10' function='0x0'/></interface>
  </devices>
  <qemu:commandline><qemu:arg value='-msg'/><qemu:arg value='timestamp=on'/></qemu:commandline>
</domain>`

func testEnrolment(t Transport) *Enrolment {
	e := &Enrolment{Version: 1, UUID: uuid.MustParse("5f6d0c9e-1c1f-4a6e-9a53-0a51d1b2c3d4"), Name: "web", Transport: t,
		KeyFile: "/var/lib/outguard/keys/k.key", Key: Key{1}, Enrolled: time.Unix(1, 0).UTC()}
	if t == VhostUser {
		e.CID, e.Vhost, e.Socket = 3, "/run/outguard/vsock/a,b.vhost", "/run/outguard/vsock/web.sock"
	}
	if t == Serial {
		e.Socket = "/run/outguard/vsock/web.serial"
	}
	return e
}

func provisioned(t *testing.T, text string, e, before *Enrolment) string {
	t.Helper()
	out, err := provision(text, e, before)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestProvision(t *testing.T) {
	bare, err := strip(plainXML, &Enrolment{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		transport Transport
		added     string
		want      []string
	}{
		{VhostUser, "vhost-user-vsock shared-memory vmcoreinfo", []string{
			`value="socket,id=outguard-vsock,path=/run/outguard/vsock/a,,b.vhost"`,
			`value="vhost-user-vsock-pci,id=outguard-vsock0,chardev=outguard-vsock,bus=pcie.0,addr=0x11"`, // 0x10 is taken
			`<source type="memfd"></source>`, `<access mode="shared"></access>`, `value="timestamp=on"`,
		}},
		{KernelVsock, "vsock vmcoreinfo", []string{`<vsock model="virtio">`, `<cid auto="yes"></cid>`}},
		{Serial, "virtio-serial virtio-serial-controller vmcoreinfo", []string{
			`<source mode="bind" path="/run/outguard/vsock/web.serial"></source>`, `<target type="virtio" name="org.outguard.agent.0"></target>`,
		}},
	} {
		t.Run(string(c.transport), func(t *testing.T) {
			e := testEnrolment(c.transport)
			out := provisioned(t, plainXML, e, &Enrolment{})
			for _, w := range append(c.want, `<entry name="opt/other">kept</entry>`, `<entry name="opt/outguard/key" file="/var/lib/outguard/keys/k.key"></entry>`, `<vmcoreinfo state="on"></vmcoreinfo>`) {
				if strings.Count(out, w) != 1 {
					t.Errorf("%q stands there %d times in\n%s", w, strings.Count(out, w), out)
				}
			}
			if got := strings.Join(e.Added, " "); got != c.added {
				t.Errorf("added %q, want %q", got, c.added)
			}
			again := testEnrolment(c.transport)
			if twice := provisioned(t, out, again, e); twice != out {
				t.Errorf("not idempotent:\n%s\nand\n%s", out, twice)
			}
			other := testEnrolment(map[Transport]Transport{VhostUser: KernelVsock, KernelVsock: Serial, Serial: VhostUser}[c.transport])
			moved := provisioned(t, out, other, e)
			if fresh := provisioned(t, plainXML, testEnrolment(other.Transport), &Enrolment{}); moved != fresh {
				t.Errorf("another transport leaves something behind:\n%s\nand\n%s", moved, fresh)
			}
			if back, err := strip(out, e); err != nil || back != bare {
				t.Errorf("strip: %v\n%s\nwant\n%s", err, back, bare)
			}
		})
	}
}

func TestProvisionKeepsWhatWasThere(t *testing.T) {
	own := strings.Replace(plainXML, "<devices>", "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking><devices>", 1)
	e := testEnrolment(VhostUser)
	out := provisioned(t, own, e, &Enrolment{})
	if !strings.Contains(out, `<source type="file">`) || strings.Join(e.Added, " ") != "vhost-user-vsock vmcoreinfo" {
		t.Errorf("added %q\n%s", e.Added, out)
	}
	own = strings.Replace(plainXML, "<devices>", "<devices><vsock model='virtio'><cid auto='no' address='77'/></vsock>", 1)
	e = testEnrolment(KernelVsock)
	out = provisioned(t, own, e, &Enrolment{})
	if !strings.Contains(out, `address="77"`) || strings.Join(e.Added, " ") != "vmcoreinfo" {
		t.Errorf("added %q\n%s", e.Added, out)
	}
	own = strings.Replace(own, "<devices>", "<features><acpi/><vmcoreinfo state='off'/></features><devices>", 1)
	e = testEnrolment(KernelVsock)
	if out = provisioned(t, own, e, &Enrolment{}); !strings.Contains(out, `<vmcoreinfo state="off">`) || len(e.Added) != 0 {
		t.Errorf("added %q\n%s", e.Added, out)
	}
	old := strings.Replace(own, "pc-q35-7.2", "pc-i440fx-2.4", 1)
	old = strings.Replace(old, "<vmcoreinfo state='off'/>", "", 1)
	e = testEnrolment(KernelVsock)
	if out = provisioned(t, old, e, &Enrolment{}); strings.Contains(out, "vmcoreinfo") || len(e.Added) != 0 {
		t.Errorf("added %q to a machine without DMA\n%s", e.Added, out)
	}
}

func TestMachinesWithoutDMA(t *testing.T) {
	for machine, want := range map[string]bool{
		"pc-i440fx-2.4": true, "pc-q35-2.4": true, "pc-0.15": true, "pc-1.3": true, "pc-i440fx-2.0": true,
		"pc": false, "q35": false, "pc-q35-7.2": false, "pc-i440fx-2.5": false, "pc-q35-2.12": false, "pc-q35-10.1": false, "virt-8.0": false, "virt": false,
	} {
		if withoutDMA.MatchString(machine) != want {
			t.Errorf("%s: %v", machine, !want)
		}
	}
}

func TestProvisionRefuses(t *testing.T) {
	vsock := strings.Replace(plainXML, "<devices>", "<devices><vsock model='virtio'><cid auto='yes'/></vsock>", 1)
	foreign := strings.Replace(plainXML, "value='-msg'", "value='-device'", 1)
	foreign = strings.Replace(foreign, "timestamp=on", "vhost-user-vsock-pci,chardev=x", 1)
	for want, text := range map[string]string{
		"kernel vsock device":   vsock,
		"has a vsock device":    foreign,
		"not a QEMU":            strings.Replace(plainXML, "type='kvm'", "type='xen'", 1),
		"no place for":          strings.Replace(plainXML, "pc-q35-7.2", "microvm", 1),
		"read its description:": "<domain",
	} {
		if _, err := provision(text, testEnrolment(VhostUser), &Enrolment{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestEnrolments(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := testEnrolment(VhostUser)
	good, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	put(e.UUID.String()+".json", good)
	put("notes.txt", []byte("not looked at"))
	put(".new-123.json", []byte("half"))
	list, err := Enrolments(dir)
	if err != nil || len(list) != 1 || list[0].Key != e.Key || list[0].Listen() != "/run/outguard/vsock/web.sock_6820" {
		t.Fatalf("%+v, %v", list, err)
	}
	other := uuid.NewString()
	put(other+".json", good)
	put(uuid.NewString()+".json", make([]byte, maxEnrolment+1))
	list, err = Enrolments(dir)
	if len(list) != 1 || err == nil || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("%d, %v", len(list), err)
	}
	if list, err := Enrolments(filepath.Join(dir, "none")); list != nil || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

func TestParseEnrolment(t *testing.T) {
	good, _ := json.Marshal(testEnrolment(VhostUser))
	for name, edit := range map[string][2]string{
		"version":        {`"version":1`, `"version":2`},
		"unknown field":  {`"version":1`, `"version":1,"more":1`},
		"short key":      {`"key":"01`, `"key":"`},
		"no key":         {`"key":"01`, `"key":"00`},
		"no hex":         {`"key":"01`, `"key":"0x`},
		"transport":      {`vhost-user`, `pigeon`},
		"sockets":        {`vhost-user`, `vsock`},
		"CID":            {`"cid":3`, `"cid":2`},
		"relative path":  {`/run/outguard/vsock/web.sock`, `web.sock`},
		"unclean path":   {`/run/outguard/vsock/web.sock`, `/run/../web.sock`},
		"long path":      {`/run/outguard/vsock/web.sock`, `/` + strings.Repeat("a", 110)},
		"no name":        {`"name":"web"`, `"name":""`},
		"no UUID":        {`5f6d0c9e-1c1f-4a6e-9a53-0a51d1b2c3d4`, uuid.Nil.String()},
		"something more": {`"added"`, `"key_file":"x"}{"added"`},
	} {
		b := strings.Replace(string(good), edit[0], edit[1], 1)
		if name == "something more" {
			b = string(good) + "{}"
		}
		if b == string(good) {
			t.Fatalf("%s: the edit does nothing", name)
		}
		if _, err := parseEnrolment([]byte(b)); err == nil {
			t.Errorf("%s: accepted %s", name, b)
		}
	}
}

func FuzzParseEnrolment(f *testing.F) {
	for _, tr := range []Transport{VhostUser, KernelVsock} {
		b, _ := json.Marshal(testEnrolment(tr))
		f.Add(b)
	}
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEnrolment(b)
		if err != nil {
			return
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseEnrolment(text); err != nil || again.Key != e.Key || again.Listen() != e.Listen() {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}

func TestKeyIsNotPrinted(t *testing.T) {
	e := testEnrolment(KernelVsock)
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := strings.ToLower(fmt.Sprintf(format, e.Key)); s != "(key)" {
			t.Errorf("%s: %s", format, s)
		}
	}
}

func TestQEMUIDs(t *testing.T) {
	const caps = `<capabilities><host><secmodel><model>apparmor</model><baselabel type='kvm'>x</baselabel></secmodel>
<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+107</baselabel></secmodel></host></capabilities>`
	if got, err := parseQEMUIDs(caps); err != nil || got != (ids{64055, 107}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseQEMUIDs("<capabilities/>"); err == nil {
		t.Error("no error without an answer")
	}
}

// TestNoLibvirtd: a socket that is missing, deaf or closed to this user is an
// error that says what to do.
func TestNoLibvirtd(t *testing.T) {
	c := New(&Options{Socket: filepath.Join(t.TempDir(), "none")})
	defer c.Close()
	_, err := c.List(t.Context())
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "systemctl start libvirtd") {
		t.Errorf("got %v", err)
	}
	var p interface{ Permanent() bool }
	if errors.As(err, &p) {
		t.Error("a libvirtd that is down may come up again")
	}
	_ = c.Close()
	if _, err := c.List(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestParseCID(t *testing.T) {
	for text, want := range map[string]uint32{
		`<domain><devices><vsock model='virtio'><cid auto='yes' address='7'/></vsock></devices></domain>`: 7,
		`<domain><devices><vsock model='virtio'><cid auto='yes'/></vsock></devices></domain>`:             0,
		`<domain><devices/></domain>`: 0,
	} {
		if got, err := parseCID(text); got != want || err != nil {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{`<domain`, `<domain><devices><vsock><cid address='-1'/></vsock></devices></domain>`} {
		if _, err := parseCID(text); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func TestParsePort(t *testing.T) {
	for state, want := range map[string]bool{` state='connected'`: true, ` state='disconnected'`: false} {
		text := `<domain><devices><channel type='unix'><target type='virtio' name='other' state='connected'/></channel>` +
			`<channel type='unix'><target type='virtio' name='org.outguard.agent.0'` + state + `/></channel></devices></domain>`
		if got, err := parsePort(text); got != want || err != nil {
			t.Errorf("%s: %v, %v", state, got, err)
		}
	}
	for _, text := range []string{`<domain`, `<domain/>`, `<domain><devices><channel><target name='org.outguard.agent.0'/></channel></devices></domain>`} {
		if open, err := parsePort(text); open || err == nil {
			t.Errorf("%s: %v, no error", text, open)
		}
	}
}

func TestEventWords(t *testing.T) {
	for _, c := range []struct {
		event, detail int32
		kind          EventKind
		reason        string
	}{
		{2, 0, Started, "booted"},
		{5, 1, Stopped, "destroyed"},
		{3, 2, SuspendedEvent, "io error"},
		{8, 0, CrashedEvent, "panicked"},
		{5, 99, Stopped, "detail 99"},
		{99, 1, 0, "event 99 detail 1"},
		{-1, -1, 0, "event -1 detail -1"},
	} {
		if k, r := words(c.event, c.detail); k != c.kind || r != c.reason {
			t.Errorf("%d %d: %s %q", c.event, c.detail, k, r)
		}
	}
}
