package vsockproto_test

import (
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// TestFilterCheck: what would make the host blind, or means nothing, is refused
// with a reason.
func TestFilterCheck(t *testing.T) {
	bulk := vsockproto.Bulk
	for name, tc := range map[string]struct {
		f   vsockproto.Filter
		why string // "": it stands
	}{
		"opens of a directory":  {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk, Path: "/var/log/"}, ""},
		"a user's sockets":      {vsockproto.Filter{Type: vsockproto.SocketCreate, Class: bulk, Conditions: vsockproto.FilterUID, UID: 33}, ""},
		"root's":                {vsockproto.Filter{Type: vsockproto.SocketCreate, Class: bulk, Conditions: vsockproto.FilterUID}, ""},
		"a container's bulk":    {vsockproto.Filter{Class: bulk, Conditions: vsockproto.FilterCgroup, Cgroup: 9}, ""},
		"executions":            {vsockproto.Filter{Type: vsockproto.BprmCommittedCreds, Class: vsockproto.Critical, Path: "/bin/"}, "critical"},
		"starts":                {vsockproto.Filter{Type: vsockproto.TaskNewtask, Class: bulk, Conditions: vsockproto.FilterUID}, "critical"},
		"ends":                  {vsockproto.Filter{Type: vsockproto.SchedProcessExit, Class: bulk, Conditions: vsockproto.FilterUID}, "critical"},
		"all that is critical":  {vsockproto.Filter{Class: vsockproto.Critical, Conditions: vsockproto.FilterUID}, "bulk alone"},
		"all opens":             {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk}, "profile"},
		"every path":            {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk, Path: "/"}, "profile"},
		"all bulk":              {vsockproto.Filter{Class: bulk}, "profile"},
		"a relative path":       {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk, Path: "var/log"}, "absolute"},
		"a path with a NUL":     {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk, Path: "/a\x00"}, "absolute"},
		"a path without end":    {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk, Path: "/" + strings.Repeat("a", 128)}, "128"},
		"a socket's path":       {vsockproto.Filter{Type: vsockproto.SocketBind, Class: bulk, Path: "/run/"}, "no path"},
		"two files' path":       {vsockproto.Filter{Type: vsockproto.InodeRename, Class: bulk, Path: "/run/"}, "no path"},
		"an unknown type":       {vsockproto.Filter{Type: 999, Class: bulk, Path: "/run/"}, "not known"},
		"an unknown condition":  {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk, Conditions: 8}, "conditions"},
		"a uid that is not one": {vsockproto.Filter{Type: vsockproto.FileOpen, Class: bulk, Path: "/run/", UID: 3}, "no condition"},
	} {
		err := tc.f.Check()
		if tc.why == "" && err != nil || tc.why != "" && (err == nil || !strings.Contains(err.Error(), tc.why)) {
			t.Errorf("%s: %v, want %q", name, err, tc.why)
		}
	}
}

// TestPolicyFits: the largest one goes into a frame of the host's.
func TestPolicyFits(t *testing.T) {
	p := vsockproto.Policy{Number: 1, Hooks: make([]vsockproto.EventType, vsockproto.MaxHooks), Filters: make([]vsockproto.Filter, vsockproto.MaxFilters)}
	for i := range p.Hooks {
		p.Hooks[i] = vsockproto.EventType(i + 1)
	}
	for i := range p.Filters {
		p.Filters[i] = vsockproto.Filter{Type: vsockproto.FileOpen, Class: vsockproto.Bulk, Path: "/run/"}
	}
	b := vsockproto.AppendPolicy(nil, &p)
	if n := vsockproto.FrameHeaderSize + len(b); n > vsockproto.MaxHello {
		t.Errorf("%d bytes, a frame has room for %d", n, vsockproto.MaxHello)
	}
	if _, err := vsockproto.ParsePolicy(b); err != nil {
		t.Error(err)
	}
	p.Filters = append(p.Filters, p.Filters[0])
	if _, err := vsockproto.ParsePolicy(vsockproto.AppendPolicy(nil, &p)); err == nil {
		t.Error("more filters than there may be")
	}
}
