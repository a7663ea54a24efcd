package monitor

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// DefaultConfigPath is where outguardd and outguard look for the configuration.
const DefaultConfigPath = "/etc/outguard/outguard.yaml"

// Config is the whole configuration of a monitor. The zero value of every
// field means the default that its comment states.
type Config struct {
	StateDir string   `yaml:"state_dir"` // default /var/lib/outguard
	RunDir   string   `yaml:"run_dir"`   // default /run/outguard
	Libvirt  string   `yaml:"libvirt"`   // libvirtd's socket; default /run/libvirt/libvirt-sock
	Playbook string   `yaml:"playbook"`  // default: /etc/outguard/playbook.yaml if it is there, else the built-in one
	Listen   Listen   `yaml:"listen"`
	Session  Session  `yaml:"session"`
	Policy   Policy   `yaml:"policy"`
	Evidence Evidence `yaml:"evidence"`
	Orders   Orders   `yaml:"orders"`
	Captures Captures `yaml:"captures"`
	Bundles  Bundles  `yaml:"bundles"`
	Engines  []Engine `yaml:"engines"` // default: tsem, beside outguardd
	Groups   []Group  `yaml:"groups"`  // default: none
	Metrics  Metrics  `yaml:"metrics"`
	Log      Log      `yaml:"log"`
}

// Listen says where guests connect.
type Listen struct {
	Vsock       string `yaml:"vsock"`        // AF_VSOCK: auto (where the kernel has vhost-vsock), on, off; default auto
	HybridDir   string `yaml:"hybrid_dir"`   // sockets of hybrid vsock and virtio-serial ports; default <run_dir>/vsock
	HybridGroup string `yaml:"hybrid_group"` // group that may connect; default: the directory's own
}

// Session bounds one VM's connection.
type Session struct {
	Heartbeat time.Duration `yaml:"heartbeat"` // default 1s; silence is a finding after two
	Canary    time.Duration `yaml:"canary"`    // default 10s; on average between two canaries, which show that each hook runs
	Grace     time.Duration `yaml:"grace"`     // for a VM to boot and its agent to come up; default 2m
	Credit    Bytes         `yaml:"credit"`    // frames under way and unjudged; default 4MiB
	Flood     int           `yaml:"flood"`     // records a second; default 100000
}

// Evidence bounds the record.
type Evidence struct {
	Sync    time.Duration `yaml:"sync"`    // to disk at least this often; default 1s
	Quota   Bytes         `yaml:"quota"`   // per VM; default 2GiB
	Segment Bytes         `yaml:"segment"` // default 64MiB
	Reserve Bytes         `yaml:"reserve"` // of the file system, left free by what guests send; default 64MiB

	Retention Retention `yaml:"retention"`
}

// Orders bounds what is ordered.
type Orders struct {
	Wait time.Duration `yaml:"wait"` // for a libvirt that is away, to pause and to capture; default 1h
}

// Captures bounds what captures take.
type Captures struct {
	Budget Bytes `yaml:"budget"` // of disk, of all together; default 64GiB
}

// Bundles says what form captures are kept in.
type Bundles struct {
	Form           string   `yaml:"form"`            // directory, or archive: one .tar.zst; default directory
	Recipients     []string `yaml:"recipients"`      // who alone can read archives, as age1...; default: everybody who may read the file
	RecipientsFile string   `yaml:"recipients_file"` // more of them, one a line; default: none
}

// Engine is one model engine's process.
type Engine struct {
	Name   string `yaml:"name"`
	Path   string `yaml:"path"`
	SHA256 string `yaml:"sha256"` // pinned checksum of the binary, hex; default: not pinned
	User   string `yaml:"user"`   // default outguard-engine where that user exists and may be taken on
	Memory Bytes  `yaml:"memory"` // that its process may have; default 2GiB
}

// Group makes workloads share one model, also of domains that are enrolled later.
type Group struct {
	Name     string `yaml:"name"`
	VM       string `yaml:"vm"`       // glob over the domain's name
	Workload string `yaml:"workload"` // as outguard model list has it; default: the domain's own
	Engine   string `yaml:"engine"`   // default: the one that has models
}

// Metrics says where Prometheus may scrape, beside the API's own socket.
type Metrics struct {
	Listen string `yaml:"listen"` // host:port; default: none
}

// Log sets what goes to standard error.
type Log struct {
	Level string `yaml:"level"` // debug, info, warn, error; default info
}

// Bytes is a size: a number with an optional unit KiB, MiB or GiB.
type Bytes int64

// UnmarshalYAML reads "64MiB" or a bare number of bytes.
func (b *Bytes) UnmarshalYAML(node ast.Node) error {
	t := node.GetToken()
	n, err := parseBytes(t.Value)
	if err != nil {
		return fmt.Errorf("line %d, column %d: %w", t.Position.Line, t.Position.Column, err)
	}
	*b = n
	return nil
}

func parseBytes(s string) (Bytes, error) {
	units := []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1}}
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n <= 0 || n > (1<<62)/u.size {
			break
		}
		return Bytes(n * u.size), nil
	}
	return 0, fmt.Errorf("%q is no size: write a whole number with KiB, MiB or GiB", s)
}

// LoadConfig reads and validates the file at path. A missing file at the
// default path means the defaults; anywhere else it is an error.
func LoadConfig(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && path == DefaultConfigPath {
		text, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c, err := ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// ParseConfig reads a configuration and fills in the defaults. Errors name
// line and column.
func ParseConfig(text []byte) (*Config, error) {
	c := new(Config)
	if err := decide.Plain(text); err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(text)) > 0 {
		if err := yaml.UnmarshalWithOptions(text, c, yaml.Strict()); err != nil {
			return nil, err
		}
	}
	c.setDefaults()
	if path, err := c.check(); err != nil {
		return nil, at(text, path, err)
	}
	return c, nil
}

func (c *Config) setDefaults() {
	set(&c.StateDir, "/var/lib/outguard")
	set(&c.RunDir, "/run/outguard")
	set(&c.Libvirt, "/run/libvirt/libvirt-sock")
	set(&c.Listen.Vsock, "auto")
	set(&c.Listen.HybridDir, filepath.Join(c.RunDir, "vsock"))
	set(&c.Session.Heartbeat, time.Second)
	set(&c.Session.Grace, 2*time.Minute)
	set(&c.Session.Canary, 10*time.Second)
	set(&c.Session.Credit, 4<<20)
	set(&c.Session.Flood, 100_000)
	set(&c.Policy.Profile, vsockproto.DefaultProfile)
	set(&c.Evidence.Sync, time.Second)
	set(&c.Evidence.Quota, 2<<30)
	set(&c.Evidence.Segment, 64<<20)
	set(&c.Evidence.Reserve, 64<<20)
	set(&c.Orders.Wait, time.Hour)
	set(&c.Captures.Budget, 64<<30)
	set(&c.Bundles.Form, formDirectory)
	if len(c.Bundles.Recipients) == 0 {
		c.Bundles.Recipients = nil
	}
	set(&c.Log.Level, "info")
	if len(c.Evidence.Retention.VMs) == 0 {
		c.Evidence.Retention.VMs = nil
	}
	if len(c.Groups) == 0 {
		c.Groups = nil
	}
	if c.Engines == nil {
		c.Engines = []Engine{{Name: "tsem"}}
	}
	for i := range c.Engines {
		set(&c.Engines[i].Memory, 2<<30)
		set(&c.Engines[i].Path, besideSelf("outguard-engine-"+c.Engines[i].Name))
	}
}

func set[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

func besideSelf(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// check returns the YAML path of the first value that cannot stand.
func (c *Config) check() (string, error) {
	for _, p := range [][2]string{
		{"$.state_dir", c.StateDir}, {"$.run_dir", c.RunDir}, {"$.libvirt", c.Libvirt},
		{"$.playbook", c.Playbook}, {"$.listen.hybrid_dir", c.Listen.HybridDir},
	} {
		if p[1] != "" && !filepath.IsAbs(p[1]) {
			return p[0], fmt.Errorf("%q is not an absolute path", p[1])
		}
	}
	if g := c.Listen.HybridGroup; g != "" {
		if _, err := user.LookupGroup(g); err != nil {
			return "$.listen.hybrid_group", err
		}
	}
	if l := c.Metrics.Listen; l != "" {
		if _, _, err := net.SplitHostPort(l); err != nil {
			return "$.metrics.listen", fmt.Errorf("%q is no host:port: %w", l, err)
		}
	}
	switch {
	case c.Listen.Vsock != "auto" && c.Listen.Vsock != "on" && c.Listen.Vsock != "off":
		return "$.listen.vsock", fmt.Errorf("%q is none of auto, on, off", c.Listen.Vsock)
	case c.Session.Heartbeat < 100*time.Millisecond || c.Session.Heartbeat > time.Minute:
		return "$.session.heartbeat", fmt.Errorf("%s is not between 100ms and 1m", c.Session.Heartbeat)
	case c.Session.Canary < time.Second || c.Session.Canary > time.Hour:
		return "$.session.canary", fmt.Errorf("%s is not between 1s and 1h", c.Session.Canary)
	case c.Session.Grace < 0:
		return "$.session.grace", fmt.Errorf("%s is negative", c.Session.Grace)
	case c.Session.Credit < 512<<10:
		return "$.session.credit", fmt.Errorf("%d is less than two frames (512KiB)", c.Session.Credit)
	case c.Session.Flood < 1000:
		return "$.session.flood", fmt.Errorf("%d is less than 1000 records a second", c.Session.Flood)
	case c.Evidence.Sync < 0:
		return "$.evidence.sync", fmt.Errorf("%s is negative", c.Evidence.Sync)
	case c.Evidence.Segment < 1<<20 || c.Evidence.Segment > 1<<30:
		return "$.evidence.segment", fmt.Errorf("%d is not between 1MiB and 1GiB", c.Evidence.Segment)
	case c.Evidence.Quota < c.Evidence.Segment:
		return "$.evidence.quota", fmt.Errorf("%d is less than a segment", c.Evidence.Quota)
	case c.Captures.Budget < 64<<20:
		return "$.captures.budget", fmt.Errorf("%d is less than 64MiB", c.Captures.Budget)
	case c.Orders.Wait < time.Second:
		return "$.orders.wait", fmt.Errorf("%s is less than 1s", c.Orders.Wait)
	}
	if path, err := c.Evidence.Retention.check(&c.Evidence); err != nil {
		return path, err
	}
	if path, err := c.Policy.check(); err != nil {
		return path, err
	}
	if path, err := c.Bundles.check(); err != nil {
		return path, err
	}
	seen := map[string]bool{}
	for i, e := range c.Engines {
		path := fmt.Sprintf("$.engines[%d]", i)
		switch sum, err := hex.DecodeString(e.SHA256); {
		case e.Name == "" || strings.ContainsAny(e.Name, "/ \n"):
			return path, fmt.Errorf("name %q cannot name an engine", e.Name)
		case seen[e.Name]:
			return path, fmt.Errorf("a second engine %q", e.Name)
		case !filepath.IsAbs(e.Path):
			return path + ".path", fmt.Errorf("%q is not an absolute path", e.Path)
		case err != nil || (len(sum) != 0 && len(sum) != 32):
			return path + ".sha256", fmt.Errorf("%q is no SHA-256 in hex", e.SHA256)
		case e.Memory < 64<<20:
			return path + ".memory", fmt.Errorf("%d is less than 64MiB", e.Memory)
		}
		if e.User != "" {
			if _, err := user.Lookup(e.User); err != nil {
				return path + ".user", err
			}
		}
		seen[e.Name] = true
	}
	for i, g := range c.Groups {
		path := fmt.Sprintf("$.groups[%d]", i)
		switch _, err := filepath.Match(g.VM, ""); {
		case g.Name == "" || len(g.Name) > engine.MaxName || strings.ContainsFunc(g.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
			return path, fmt.Errorf("name %q cannot name a group", g.Name)
		case g.VM == "":
			return path, fmt.Errorf("no vm says whose workloads share the model; \"*\" is every domain")
		case err != nil:
			return path + ".vm", fmt.Errorf("%q: %w", g.VM, err)
		}
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
		return "", nil
	}
	return "$.log.level", fmt.Errorf("%q is none of debug, info, warn, error", c.Log.Level)
}

// LogLevel is log.level as slog's.
func (c *Config) LogLevel() slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Log.Level)); err != nil {
		return slog.LevelInfo // check has refused what slog does not know
	}
	return l
}

// at adds the line on which path stands in text, if it does.
func at(text []byte, path string, cause error) error {
	where := strings.TrimPrefix(path, "$.")
	p, err := yaml.PathString(path)
	if err != nil {
		return fmt.Errorf("%s: %w", where, cause)
	}
	node, err := p.ReadNode(bytes.NewReader(text))
	if err != nil || node == nil || node.GetToken() == nil {
		return fmt.Errorf("%s: %w", where, cause)
	}
	pos := node.GetToken().Position
	return fmt.Errorf("line %d, column %d: %s: %w", pos.Line, pos.Column, where, cause)
}
