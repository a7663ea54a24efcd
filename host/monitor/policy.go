package monitor

import (
	"context"
	"encoding/hex"
	"errors"
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
	Filters  map[string][]Filter `yaml:"filters"`  // by profile: what of it is not recorded
}

// Filter says which records of a profile's hooks guests' kernels leave out: those
// for which all that it names holds.
type Filter struct {
	Hook    string  `yaml:"hook"`
	Class   string  `yaml:"class"`   // every hook of it, without hook: bulk
	Path    string  `yaml:"path"`    // what a path begins with, where it is the machine's own
	UID     *uint32 `yaml:"uid"`     // of a task whose ids are all this
	Cgroup  uint64  `yaml:"cgroup"`  // its id
	Program string  `yaml:"program"` // SHA-256 of what the task runs, hex
}

// of is what a guest is sent, of a profile that reports types.
func (c *Filter) of(types []vsockproto.EventType) (f vsockproto.Filter, err error) {
	switch {
	case (c.Hook == "") == (c.Class == ""):
		return f, errors.New("name a hook, or a class: all of its hooks")
	case c.Hook != "":
		if f.Type, err = vsockproto.ParseEventType(c.Hook); err != nil {
			return f, fmt.Errorf("%q is no hook: guest/HOOKS.md has them all", c.Hook)
		}
		if !slices.Contains(types, f.Type) {
			return f, fmt.Errorf("%s is not one of the profile's hooks", c.Hook)
		}
		f.Class = f.Type.Class()
	case c.Class != vsockproto.Bulk.String():
		return f, fmt.Errorf("class %q cannot be filtered, %s alone can: programs are told by critical records, or what intruders do", c.Class, vsockproto.Bulk)
	default:
		f.Class = vsockproto.Bulk
	}
	if c.UID != nil {
		f.Conditions, f.UID = f.Conditions|vsockproto.FilterUID, *c.UID
	}
	if c.Cgroup != 0 {
		f.Conditions, f.Cgroup = f.Conditions|vsockproto.FilterCgroup, c.Cgroup
	}
	if c.Program != "" {
		sum, err := hex.DecodeString(c.Program)
		if err != nil || len(sum) != len(f.Program) {
			return f, fmt.Errorf("program %q is no SHA-256 in hex", c.Program)
		}
		f.Conditions, f.Program = f.Conditions|vsockproto.FilterProgram, [32]byte(sum)
	}
	f.Path = c.Path
	return f, f.Check()
}

// filters returns those of a profile.
func (p *Policy) filters(name string) (all []vsockproto.Filter, err error) {
	types, err := p.types(name)
	if err != nil {
		return nil, err
	}
	for i := range p.Filters[name] {
		f, err := p.Filters[name][i].of(types)
		if err != nil {
			return nil, fmt.Errorf("filter %d: %w", i+1, err)
		}
		all = append(all, f)
	}
	if len(all) > vsockproto.MaxFilters {
		return nil, fmt.Errorf("%d filters, a guest holds %d", len(all), vsockproto.MaxFilters)
	}
	return all, nil
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
	for name := range p.Filters {
		if _, err := p.filters(name); err != nil {
			return "$.policy.filters." + name, err
		}
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

// filtersOf is what of that its kernel leaves out.
func (m *Monitor) filtersOf(vm uuid.UUID) []vsockproto.Filter {
	filters, err := m.cfg.Policy.filters(m.profileOf(vm))
	if err != nil {
		return nil
	}
	return filters
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
	number, err := b.m.sessions.SetPolicy(vm, b.m.policyOf(vm), b.m.filtersOf(vm)...)
	if err != nil { // the connection breaks; the next one is sent it
		b.m.log.Warn("send a policy", "vm", b.m.domains.name(vm), "err", err)
	}
	b.m.keep(vm, evidence.KindNote, time.Now(), note{What: "policy", Text: fmt.Sprintf("%d: profile %s, by %s", number, name, by)})
	return name, number, nil
}
