package monitor

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/respond"
)

// maxScreen bounds the picture on a bundle's page, bytes.
const maxScreen = 8 << 20

// machine puts on a bundle's page what the VM is and how it stood, and returns
// the parts of that. What cannot be read is said there: the capture stands
// without it.
func (c *capturer) machine(o respond.Order, shot *domain.Snapshot, p *bundle.Page) (parts []bundle.Part) {
	for _, f := range slices.Concat(shot.Facts, shot.Claims) {
		p.Facts = append(p.Facts, bundle.Fact{Name: f.Name, Value: f.Value})
	}
	for _, l := range shot.Left {
		p.Missing = append(p.Missing, fmt.Sprintf("Not captured: %s: %s.", l.Target, l.Why))
	}
	for _, f := range shot.Files {
		switch f.Kind {
		case "memory":
			parts = append(parts, c.registers(f.Path, p)...)
		case "screen":
			if b, err := os.ReadFile(f.Path); err == nil && len(b) <= maxScreen {
				p.Screen = b
			}
		}
	}
	return parts
}

// agent is what the VM's agent has said of itself and its kernel, if it has: the
// process that packs the capture may be another, which has not heard of it.
func (c *capturer) agent(vm uuid.UUID) []domain.Fact {
	st, ok := c.m.sessions.StatusOf(vm)
	if !ok || st.Build == "" {
		return nil
	}
	return []domain.Fact{
		{Name: "guest kernel", Value: st.Kernel}, {Name: "agent", Value: st.Build},
		{Name: "hooks", Value: fmt.Sprint(len(st.Hooks))}, {Name: "transport", Value: st.Transport},
	}
}

// registers reads them out of the memory's own notes.
func (c *capturer) registers(path string, p *bundle.Page) (parts []bundle.Part) {
	core, err := bundle.ReadCore(path)
	if err == nil {
		p.CPUs = core.CPUs
		var text []byte
		if text, err = json.MarshalIndent(core.CPUs, "", "  "); err == nil {
			parts = append(parts, bundle.Part{Path: bundle.RegistersPart, Data: append(text, '\n')})
		}
	}
	if err != nil {
		p.Missing = append(p.Missing, "No registers: "+err.Error()+".")
		return parts
	}
	if core.VMCoreInfo == "" {
		p.Missing = append(p.Missing, "The memory has no VMCOREINFO: the domain has no <vmcoreinfo state='on'/>, or its guest has left nothing there.")
		return parts
	}
	return append(parts, bundle.Part{Path: bundle.VMCoreInfoPart, Data: []byte(core.VMCoreInfo)})
}
