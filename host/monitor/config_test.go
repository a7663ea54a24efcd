package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfigDefaults(t *testing.T) {
	c, err := ParseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Groups != nil {
		t.Errorf("default groups: %+v", c.Groups)
	}
	if c.StateDir != "/var/lib/outguard" || c.Session.Heartbeat != time.Second || c.Evidence.Quota != 2<<30 {
		t.Errorf("defaults: %+v", c)
	}
	if len(c.Engines) != 1 || !strings.HasSuffix(c.Engines[0].Path, "/outguard-engine-tsem") {
		t.Errorf("default engines: %+v", c.Engines)
	}
}

func TestConfigRoundTrip(t *testing.T) {
	c, err := ParseConfig([]byte(`
state_dir: /srv/og
run_dir: /run/og
session: {heartbeat: 500ms, credit: 8MiB}
evidence: {quota: 3GiB, segment: 1048576}
engines:
  - {name: tsem, path: /opt/tsem, user: nobody}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.HybridDir != "/run/og/vsock" || c.Session.Credit != 8<<20 || c.Evidence.Segment != 1<<20 || c.Engines[0].User != "nobody" {
		t.Errorf("got %+v", c)
	}
}

// The first pattern that matches a VM's name counts.
func TestPolicyOfName(t *testing.T) {
	c, err := ParseConfig([]byte(`
policy:
  profile: minimal
  profiles:
    own: [sb_mount, bprm_committed_creds, task_newtask, sched_process_exit, task_snapshot, sb_mount]
  vms:
    - {match: "web-*", profile: own}
    - {match: "*-1", profile: tsem-full}
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"web-1": "own", "db-1": "tsem-full", "db": "minimal"} {
		if got := c.Policy.of(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	types, err := c.Policy.types("own")
	if got := fmt.Sprint(types); err != nil || got != "[bprm_committed_creds task_newtask sched_process_exit task_snapshot sb_mount]" {
		t.Errorf("own: %s, %v", got, err)
	}
}

// TestPolicyFilters: those of a profile, as a guest is sent them.
func TestPolicyFilters(t *testing.T) {
	c, err := ParseConfig([]byte(`
policy:
  profiles:
    web: [bprm_committed_creds, task_newtask, sched_process_exit, task_snapshot, file_open, socket_create]
  filters:
    web:
      - {hook: file_open, path: /var/log/, uid: 0}
      - {class: bulk, cgroup: 4711, program: ` + strings.Repeat("ab", 32) + `}
`))
	if err != nil {
		t.Fatal(err)
	}
	filters, err := c.Policy.filters("web")
	want := "[file_open path=/var/log/ uid=0 bulk cgroup=4711 program=" + strings.Repeat("ab", 32) + "]"
	if got := fmt.Sprint(filters); err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	if other, err := c.Policy.filters("default"); err != nil || len(other) != 0 {
		t.Errorf("another profile's: %v, %v", other, err)
	}
}

// Each broken configuration is refused with its line and what is wrong.
func TestConfigErrors(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key":    {"state_dir: /a\nbogus: 1\n", "[2:1]"},
		"wrong type":     {"session:\n  heartbeat: [1]\n", "[2:"},
		"bad size":       {"session:\n  credit: 4 bananas\n", "line 2, column 11: \"4 bananas\" is no size"},
		"no such user":   {"engines:\n  - name: a\n    path: /x\n    user: nobody-at-all\n", "line 4, column 11: engines[0].user"},
		"no such group":  {"listen:\n  hybrid_group: nobody-at-all\n", "line 2, column 17: listen.hybrid_group"},
		"no port":        {"metrics:\n  listen: localhost\n", "line 2, column 11: metrics.listen"},
		"relative file":  {"playbook: p.yaml\n", "line 1, column 11: playbook"},
		"zero size":      {"session:\n  credit: 0MiB\n", "line 2, column 11: "},
		"relative dir":   {"run_dir: /run/og\nstate_dir: here\n", "line 2, column 12: state_dir"},
		"bad enum":       {"listen:\n  vsock: maybe\n", "line 2, column 10: listen.vsock"},
		"small credit":   {"session:\n  credit: 1KiB\n", "line 2, column 11: session.credit"},
		"bad checksum":   {"engines:\n  - name: a\n    path: /x\n    sha256: zz\n", "line 4, column 13: engines[0].sha256"},
		"second engine":  {"engines:\n  - {name: a, path: /x}\n  - {name: a, path: /y}\n", "line 3, column "},
		"small engine":   {"engines:\n  - name: a\n    path: /x\n    memory: 1MiB\n", "line 4, column 13: engines[0].memory"},
		"small budget":   {"captures:\n  budget: 1MiB\n", "line 2, column 11: captures.budget"},
		"bad form":       {"bundles:\n  form: tar\n", "line 2, column 9: bundles.form: \"tar\" is none of directory, archive"},
		"bad recipient":  {"bundles:\n  form: archive\n  recipients: [age1x]\n", "line 3, column 16: bundles.recipients[0]"},
		"open directory": {"bundles:\n  recipients: [" + recipient + "]\n", "line 2, column 15: bundles.recipients: a directory cannot be encrypted: say form: archive"},
		"file for none":  {"bundles:\n  recipients_file: /etc/outguard/team\n", "line 2, column 20: bundles.recipients_file: a directory cannot be encrypted"},
		"relative team":  {"bundles:\n  form: archive\n  recipients_file: team\n", "line 3, column 20: bundles.recipients_file"},
		"short wait":     {"orders:\n  wait: 1ms\n", "line 2, column 9: orders.wait"},
		"bad profile":    {"policy:\n  profile: all\n", "line 2, column 12: policy.profile: \"all\" is none of minimal, default"},
		"bad hook":       {"policy:\n  profiles:\n    web: [file_opened]\n", "\"file_opened\" is no hook"},
		"blind profile":  {"policy:\n  profiles:\n    web: [file_open]\n", "it lacks bprm_committed_creds"},
		"taken profile":  {"policy:\n  profiles:\n    minimal: [file_open]\n", "has a meaning already"},
		"critical":       {"policy:\n  filters:\n    default: [{hook: bprm_committed_creds, uid: 3}]\n", "filter 1: bprm_committed_creds is critical"},
		"critical class": {"policy:\n  filters:\n    default: [{class: critical, uid: 3}]\n", "\"critical\" cannot be filtered, bulk alone can"},
		"filter of all":  {"policy:\n  filters:\n    default: [{hook: file_open}]\n", "without a condition it leaves out every record"},
		"foreign hook":   {"policy:\n  filters:\n    minimal: [{hook: file_open, uid: 3}]\n", "file_open is not one of the profile's hooks"},
		"which filter":   {"policy:\n  filters:\n    default: [{uid: 3}]\n", "name a hook, or a class"},
		"filters of":     {"policy:\n  filters:\n    web: [{class: bulk, uid: 3}]\n", "\"web\" is none of minimal, default"},
		"bad program":    {"policy:\n  filters:\n    default: [{class: bulk, program: ab}]\n", "no SHA-256 in hex"},
		"bad pattern":    {"policy:\n  vms:\n    - {match: \"[\", profile: minimal}\n", "matches no name"},
		"VM's profile":   {"policy:\n  vms:\n    - match: web-*\n      profile: all\n", "line 4, column 16: policy.vms[0].profile"},
		"young bulk":     {"evidence:\n  retention:\n    bulk_age: 1m\n", "line 3, column 15: evidence.retention.bulk_age: 1m0s is less than 1h0m0s"},
		"bulk after all": {"evidence:\n  retention:\n    age: 2h\n    bulk_age: 3h\n", "line 4, column 15: evidence.retention.bulk_age"},
		"small record":   {"evidence:\n  retention: {size: 1MiB}\n", "line 2, column 21: evidence.retention.size"},
		"beyond quota":   {"evidence:\n  retention: {size: 4GiB}\n", "line 2, column 21: evidence.retention.size"},
		"VM's age":       {"evidence:\n  retention:\n    vms:\n      - {match: web, age: 1s}\n", "line 4, column 27: evidence.retention.vms[0].age"},
		"log level":      {"log:\n  level: loud\n", "line 2, column 10: log.level"},
		"nameless group": {"groups:\n  - {vm: \"*\"}\n", "line 2, column "},
		"group of none":  {"groups:\n  - {name: webs}\n", "no vm says whose"},
		"broken glob":    {"groups:\n  - name: webs\n    vm: \"[\"\n", "line 3, column 9: groups[0].vm"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := ParseConfig([]byte(tc.text))
			if err == nil || c != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v; want an error with %q", c, err, tc.want)
			}
		})
	}
}

// recipient is anybody's.
const recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"

// Recipients of both places, and a file that cannot stand is an error before
// anything starts.
func TestRecipients(t *testing.T) {
	file := filepath.Join(t.TempDir(), "team")
	c, err := ParseConfig([]byte("bundles: {form: archive, recipients: [" + recipient + "], recipients_file: " + file + "}\n"))
	if err != nil {
		t.Fatal(err)
	}
	c.Playbook = filepath.Join(t.TempDir(), "playbook.yaml")
	if err := os.WriteFile(c.Playbook, []byte("version: 1\nrules: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(c); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "bundles.recipients_file") {
		t.Errorf("no file: %v", err)
	}
	for text, n := range map[string]int{"": 0, "# nobody\n": 0, "age1x\n": 0, "# a team\n" + recipient + "\n" + recipient + "\n": 3} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := c.Bundles.recipients()
		if len(all) != n || (err == nil) != (n > 0) || (Check(c) == nil) != (n > 0) {
			t.Errorf("%q: %d recipients, %v", text, len(all), err)
		}
	}
}

func TestLoadConfigMissing(t *testing.T) {
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want a missing file", err)
	}
}
