package monitor

import (
	"fmt"
	"path"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/plugins/engine"
)

// Retention says what of each VM's record is given up. By default nothing is.
type Retention struct {
	BulkAge time.Duration `yaml:"bulk_age"` // bulk that no finding cites; 0: never
	Age     time.Duration `yaml:"age"`      // everything; 0: never
	Size    Bytes         `yaml:"size"`     // on disk; 0: no bound but the quota
	VMs     []VMRetention `yaml:"vms"`      // of those whose names match; the first that does counts
}

// VMRetention is the retention of the VMs whose names match.
type VMRetention struct {
	Match   string        `yaml:"match"` // * any run of characters, ? one
	BulkAge time.Duration `yaml:"bulk_age"`
	Age     time.Duration `yaml:"age"`
	Size    Bytes         `yaml:"size"`
}

// leastAge is how young nothing is given up for its age: what a capture or an
// engine still wants to look at.
const leastAge = time.Hour

func (r *Retention) check(e *Evidence) (string, error) {
	const at = "$.evidence.retention"
	if path, err := checkRetention(at, e, r.BulkAge, r.Age, r.Size); err != nil {
		return path, err
	}
	for i, v := range r.VMs {
		at := fmt.Sprintf("%s.vms[%d]", at, i)
		if _, err := path.Match(v.Match, ""); err != nil || v.Match == "" {
			return at, fmt.Errorf("%q matches no name: write one, with * and ?", v.Match)
		}
		if path, err := checkRetention(at, e, v.BulkAge, v.Age, v.Size); err != nil {
			return path, err
		}
	}
	return "", nil
}

func checkRetention(at string, e *Evidence, bulk, age time.Duration, size Bytes) (string, error) {
	switch {
	case bulk != 0 && bulk < leastAge:
		return at + ".bulk_age", fmt.Errorf("%s is less than %s", bulk, leastAge)
	case age != 0 && age < leastAge:
		return at + ".age", fmt.Errorf("%s is less than %s", age, leastAge)
	case age != 0 && bulk > age:
		return at + ".bulk_age", fmt.Errorf("%s is more than age, after which nothing is left", bulk)
	case size != 0 && size < 2*e.Segment:
		return at + ".size", fmt.Errorf("%d is less than two segments", size)
	case size > e.Quota:
		return at + ".size", fmt.Errorf("%d is more than the quota, which is there first", size)
	}
	return "", nil
}

func (r *Retention) of(name string) evidence.Retention {
	for _, v := range r.VMs {
		if ok, _ := path.Match(v.Match, name); ok {
			return evidence.Retention{BulkAge: v.BulkAge, Age: v.Age, Size: int64(v.Size)}
		}
	}
	return evidence.Retention{BulkAge: r.BulkAge, Age: r.Age, Size: int64(r.Size)}
}

// retaining is what the store gives up of each VM's record. The host's own stays.
func (m *Monitor) retaining() *evidence.Retaining {
	finding := api.KindKey(uint16(evidence.KindFinding))
	return &evidence.Retaining{
		Of: func(vm uuid.UUID) evidence.Retention {
			if vm == uuid.Nil || !m.settled.Load() { // the host's; and no name is known yet
				return evidence.Retention{}
			}
			return m.cfg.Evidence.Retention.of(m.domains.name(vm))
		},
		Cites:  cites,
		May:    func(has func(uint64) bool) bool { return has(finding) },
		Needed: m.needed,
		Done:   m.gaveUp,
	}
}

// cites says which frames a finding is about.
func cites(r *evidence.Record, cite func(uint64)) {
	if r.Kind != evidence.KindFinding {
		return
	}
	f, err := unmarshal[engine.Finding](r)
	if err != nil {
		return // it says nothing, and stays
	}
	if f.Ref != nil {
		cite(f.Ref.Index)
	}
	if n, err := strconv.ParseUint(f.Detail["index"], 10, 64); err == nil {
		cite(n)
	}
}

// needed is the index from which on a VM's record may have to be read again by the
// next monitor: no checkpoint of an engine covers it, nor its session's state. Of
// a VM that is no more nobody reads.
func (m *Monitor) needed(vm uuid.UUID) uint64 {
	from := ^uint64(0)
	saved, err := m.state.Load(vm)
	if err != nil {
		return 0
	}
	if index, ok := session.SavedIndex(saved); ok {
		from = index + 1
	}
	_, known := m.domains.get(vm)
	for _, e := range m.engines {
		index, ok := m.checkpoints().Position(e.Name(), vm)
		switch {
		case ok:
			from = min(from, index+1)
		case known:
			return 0
		}
	}
	return from
}

func (m *Monitor) gaveUp(vm uuid.UUID, g evidence.GivenUp) {
	name := m.domains.name(vm)
	m.log.Info("a part of the record was given up", "vm", name, "uuid", vm, "reason", g.Reason,
		"from", g.First, "to", g.Next, "records", g.Records, "bytes", g.Bytes, "all", g.All, "left", g.OnDisk)
	m.metrics.VM(vm, name).GaveUp(g.Reason, g.Records)
}
