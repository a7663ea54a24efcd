package monitor

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/vsockproto"
)

// Policy says which hooks a guest's agent attaches and reports.
type Policy struct {
	Profile  string              `yaml:"profile"`  // of every VM that vms does not name; default "default"
	Profiles map[string][]string `yaml:"profiles"` // of one's own, beside vsockproto's: lists of hooks
	VMs      []VMPolicy          `yaml:"vms"`      // the first that matches counts
}

// VMPolicy is the policy of the VMs whose names match.
type VMPolicy struct {
	Match   string `yaml:"match"` // * any run of characters, ? one
	Profile string `yaml:"profile"`
}

// types returns what a profile reports, ascending.
func (p *Policy) types(name string) ([]vsockproto.EventType, error) {
	hooks, own := p.Profiles[name]
	if !own {
		types, err := vsockproto.ParseProfile(name)
		if err != nil {
			return nil, fmt.Errorf("%q is none of %s", name, strings.Join(p.names(), ", "))
		}
		return types, nil
	}
	var types []vsockproto.EventType
	for _, h := range hooks {
		t, err := vsockproto.ParseEventType(h)
		if err != nil {
			return nil, fmt.Errorf("%q is no hook: guest/HOOKS.md has them all", h)
		}
		types = append(types, t)
	}
	slices.Sort(types)
	return slices.Compact(types), nil
}

// names lists the profiles that there are.
func (p *Policy) names() []string {
	var own []string
	for name := range p.Profiles {
		own = append(own, name)
	}
	slices.Sort(own)
	return append(vsockproto.ProfileNames(), own...)
}

// check returns the YAML path of the first value that cannot stand.
func (p *Policy) check() (string, error) {
	for name, hooks := range p.Profiles {
		at := "$.policy.profiles." + name
		if slices.Contains(vsockproto.ProfileNames(), name) {
			return at, fmt.Errorf("%q has a meaning already: choose another name", name)
		}
		if len(hooks) == 0 || strings.ContainsAny(name, " ./\n") || name == "" {
			return at, fmt.Errorf("profile %q needs a name of one word and a list of hooks", name)
		}
		types, err := p.types(name)
		if err != nil {
			return at, err
		}
		if lacks := lacking(types); lacks != "" {
			return at, fmt.Errorf("it lacks %s: without them nobody knows which program a task runs", lacks)
		}
	}
	if _, err := p.types(p.Profile); err != nil {
		return "$.policy.profile", err
	}
	for i, v := range p.VMs {
		at := fmt.Sprintf("$.policy.vms[%d]", i)
		if _, err := path.Match(v.Match, ""); err != nil || v.Match == "" {
			return at, fmt.Errorf("%q matches no name: write one, with * and ?", v.Match)
		}
		if _, err := p.types(v.Profile); err != nil {
			return at + ".profile", err
		}
	}
	return "", nil
}

// lacking names what every profile has to have.
func lacking(types []vsockproto.EventType) string {
	var lacks []string
	for _, t := range []vsockproto.EventType{
		vsockproto.BprmCommittedCreds, vsockproto.TaskNewtask, vsockproto.SchedProcessExit, vsockproto.TaskSnapshot,
	} {
		if !slices.Contains(types, t) {
			lacks = append(lacks, t.String())
		}
	}
	return strings.Join(lacks, ", ")
}

// of is the profile of the VM of that name.
func (p *Policy) of(name string) string {
	for _, v := range p.VMs {
		if ok, _ := path.Match(v.Match, name); ok {
			return v.Profile
		}
	}
	return p.Profile
}

// profileOf is the profile of a VM as things stand: what a person gave it, unless
// the configuration no longer has that, or what the configuration says.
func (m *Monitor) profileOf(vm uuid.UUID) string {
	if given := m.state.Policy(vm); given != "" {
		if _, err := m.cfg.Policy.types(given); err == nil {
			return given
		}
	}
	w, _ := m.domains.get(vm)
	return m.cfg.Policy.of(w.Name)
}

// policyOf is what a VM's agent reports. check has seen that every profile is one.
func (m *Monitor) policyOf(vm uuid.UUID) []vsockproto.EventType {
	types, err := m.cfg.Policy.types(m.profileOf(vm))
	if err != nil {
		return nil
	}
	return types
}

// SetPolicy is on disk before the agent hears of it.
func (b backend) SetPolicy(_ context.Context, vm uuid.UUID, profile string, by api.Caller) (string, uint64, error) {
	if profile != "" {
		if _, err := b.m.cfg.Policy.types(profile); err != nil {
			return "", 0, api.Error(connect.CodeInvalidArgument, "policy.profiles in the configuration adds others", fmt.Errorf("profile %w", err))
		}
	}
	if err := b.m.state.SavePolicy(vm, profile); err != nil {
		return "", 0, fmt.Errorf("keep the policy: %w", err)
	}
	name := b.m.profileOf(vm)
	number, err := b.m.sessions.SetPolicy(vm, b.m.policyOf(vm))
	if err != nil { // the connection breaks; the next one is sent it
		b.m.log.Warn("send a policy", "vm", b.m.domains.name(vm), "err", err)
	}
	b.m.keep(vm, evidence.KindNote, time.Now(), note{What: "policy", Text: fmt.Sprintf("%d: profile %s, by %s", number, name, by)})
	return name, number, nil
}
