package domain

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Transport is how a guest's agent reaches the host.
type Transport string

// The transports.
const (
	KernelVsock Transport = "vsock"      // /dev/vhost-vsock: AF_VSOCK on both sides
	VhostUser   Transport = "vhost-user" // a vhost-device-vsock process: unix sockets on the host
	Serial      Transport = "serial"     // a virtio-serial port, whose unix socket QEMU serves
)

// Transports are all of them, for who lets a person choose.
var Transports = []Transport{KernelVsock, VhostUser, Serial}

// AgentPort is the vsock port that an agent connects to.
const AgentPort = 6820

// Key is a domain's one-time key; it prints as "(key)".
type Key [32]byte

func (Key) String() string   { return "(key)" }
func (Key) GoString() string { return "(key)" }

// MarshalText writes the key as hex.
func (k Key) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, k[:]), nil }

// UnmarshalText reads 64 hex digits.
func (k *Key) UnmarshalText(b []byte) error {
	if len(b) != 2*len(k) {
		return fmt.Errorf("a key has %d hex digits, not %d", 2*len(k), len(b))
	}
	_, err := hex.Decode(k[:], b)
	return err
}

// Enrolment is what the monitor knows of a domain that it watches. It is the
// file enroll/<uuid>.json in the state directory, readable by the monitor's
// user only.
type Enrolment struct {
	Version   int       `json:"version"` // 1
	UUID      uuid.UUID `json:"uuid"`
	Name      string    `json:"name"` // when it was enrolled
	Transport Transport `json:"transport"`
	// CID is the guest's address where the backend must be told it (vhost-user);
	// libvirt assigns that of kernel vsock at each start: ask Client.CID.
	CID      uint32    `json:"cid,omitempty"`
	Vhost    string    `json:"vhost,omitempty"`  // socket on which the backend serves QEMU
	Socket   string    `json:"socket,omitempty"` // the backend's base path, and the agent arrives at Listen(); or the port's own (serial)
	KeyFile  string    `json:"key_file"`         // what QEMU gives the guest
	Key      Key       `json:"key"`
	Enrolled time.Time `json:"enrolled"`
	Added    []string  `json:"added,omitempty"` // what Unenroll takes out again, beside the key
}

// Listen is the unix socket at which this guest's agent arrives, "" where it
// arrives at none.
func (e *Enrolment) Listen() string {
	if e.Transport != VhostUser {
		return ""
	}
	return fmt.Sprintf("%s_%d", e.Socket, AgentPort)
}

// Snippet is what has to be done in the guest, as a shell script for its root.
func (e *Enrolment) Snippet() string {
	return `# In the guest ` + printable(e.Name) + `, as root, with the file outguard-agent at hand:
install -D -m 0755 outguard-agent /usr/local/sbin/outguard-agent
printf '%s\n' qemu_fw_cfg ` + e.module() + ` >/etc/modules-load.d/outguard.conf
# The kernel needs bpf among its security modules. Debian's has it; elsewhere it
# joins those that run: none of them is taken away.
lsm=$(cat /sys/kernel/security/lsm)
case ",$lsm," in
,,) echo 'which security modules run is not known: see that bpf is among them' >&2 ;;
*,bpf,*) ;;
*)
	mkdir -p /etc/default/grub.d
	echo "GRUB_CMDLINE_LINUX=\"\$GRUB_CMDLINE_LINUX lsm=$lsm,bpf\"" >/etc/default/grub.d/outguard.cfg
	update-grub
	;;
esac
cat >/etc/systemd/system/outguard-agent.service <<'END'
` + e.unit() + `END
systemctl enable outguard-agent.service
reboot
`
}

// unit is the agent's service where no package brings it: that of guest/deploy, whose
// comments say why, and a test holds them together.
func (e *Enrolment) unit() string {
	return `[Unit]
Description=Outguard agent
Documentation=https://github.com/outguard/outguard
DefaultDependencies=no
After=systemd-modules-load.service
Before=sysinit.target
ConditionVirtualization=vm
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/local/sbin/outguard-agent` + e.flags() + `
Restart=always
RestartSec=1
KillSignal=SIGKILL
OOMScoreAdjust=-1000
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_VSOCK AF_UNIX AF_NETLINK AF_INET
[Install]
WantedBy=sysinit.target
`
}

// module is the guest kernel's driver of the channel.
func (e *Enrolment) module() string {
	if e.Transport == Serial {
		return "virtio_console"
	}
	return "vmw_vsock_virtio_transport"
}

// flags are what the agent has to be told, each with a blank before it.
func (e *Enrolment) flags() string {
	if e.Transport == Serial {
		return " --channel serial:" + PortName
	}
	return ""
}

// printable keeps a name from being more than a word in a comment.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

const (
	maxEnrolment  = 16 << 10
	maxEnrolments = 100_000
)

func readEnrolment(path string) (Enrolment, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Enrolment{}, fmt.Errorf("read enrolment: %w", err)
	}
	defer f.Close()
	return readFile(f)
}

// readFile reads an opened enrolment. The directory is the monitor's user's:
// what stands there may be a fifo, which is opened without waiting and refused,
// for root reads here as well.
func readFile(f *os.File) (Enrolment, error) {
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(f, maxEnrolment+1))
	}
	if err == nil && len(b) > maxEnrolment {
		err = fmt.Errorf("larger than %d bytes", maxEnrolment)
	}
	var e Enrolment
	if err == nil {
		e, err = parseEnrolment(b)
	}
	if err == nil && e.UUID.String()+".json" != filepath.Base(f.Name()) {
		err = errors.New("its name is not its domain's UUID")
	}
	if err != nil {
		return Enrolment{}, fmt.Errorf("enrolment %s: %w", f.Name(), err)
	}
	return e, nil
}

// parseEnrolment reads and validates one enrolment.
func parseEnrolment(b []byte) (Enrolment, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var e Enrolment
	if err := d.Decode(&e); err != nil {
		return Enrolment{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Enrolment{}, errors.New("something follows the object")
	}
	return e, e.validate()
}

func (e *Enrolment) validate() error {
	switch {
	case e.Version != 1:
		return fmt.Errorf("version %d, this program knows 1", e.Version)
	case e.UUID == uuid.Nil:
		return errors.New("no UUID")
	case e.Name == "":
		return errors.New("no name")
	case e.Key == Key{}:
		return errors.New("no key")
	case e.Transport == KernelVsock && e.Vhost == "" && e.Socket == "":
		return nil
	case e.Transport == Serial && e.Vhost == "" && e.CID == 0:
		return socketPath(e.Socket)
	case e.Transport != VhostUser:
		return fmt.Errorf("transport %q with these fields is none of vsock, vhost-user, serial", e.Transport)
	case e.CID < 3 || e.CID == ^uint32(0):
		return fmt.Errorf("CID %d is reserved", e.CID)
	}
	return errors.Join(socketPath(e.Vhost), socketPath(e.Listen()))
}

func socketPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || len(path) > maxSocketPath {
		return fmt.Errorf("socket %q: an absolute path of at most %d bytes is needed", path, maxSocketPath)
	}
	return nil
}

// maxSocketPath is what sockaddr_un holds, with its end.
const maxSocketPath = 107
