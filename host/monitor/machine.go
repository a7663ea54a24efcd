package monitor

import (
	"encoding/json"
	"fmt"
	"os"

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
	for _, f := range shot.Facts {
		p.Facts = append(p.Facts, bundle.Fact{Name: f.Name, Value: f.Value})
	}
	if st, ok := c.m.sessions.StatusOf(o.VM); ok && st.Build != "" {
		p.Facts = append(p.Facts, bundle.Fact{Name: "guest kernel", Value: st.Kernel}, bundle.Fact{Name: "agent", Value: st.Build},
			bundle.Fact{Name: "hooks", Value: fmt.Sprint(len(st.Hooks))}, bundle.Fact{Name: "transport", Value: st.Transport})
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
