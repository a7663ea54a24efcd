package domain

import "testing"

// FuzzXML reads any text as what libvirt says of a domain and of itself.
func FuzzXML(f *testing.F) {
	f.Add(`<domain><devices><vsock model='virtio'><cid auto='yes' address='3'/></vsock></devices></domain>`)
	f.Add(`<capabilities><host><secmodel><model>dac</model><baselabel>+64055:+109</baselabel></secmodel></host></capabilities>`)
	f.Add(`<domain><devices><vsock><cid address='99999999999'/></vsock></devices></domain>`)
	f.Add(`<domain><devices><channel><target type='virtio' name='org.outguard.agent.0' state='connected'/></channel></devices></domain>`)
	f.Add(`<domainsnapshot><state>paused</state><creationTime>1700000000</creationTime></domainsnapshot>`)
	f.Add(`<!DOCTYPE a [<!ENTITY b "c">]><domain>&b;</domain>`)
	f.Add(`<domain><devices><interface type='user'><mac address='52:54:00:00:00:01'/><link state='down'/></interface></devices></domain>`)
	f.Fuzz(func(t *testing.T, text string) {
		if cid, err := parseCID(text); err != nil && cid != 0 {
			t.Error("a CID beside an error")
		}
		if s, err := parseSaved(text); err != nil && s != (Saved{}) {
			t.Error("a saved state beside an error")
		}
		if open, err := parsePort(text); err != nil && open {
			t.Error("an open port beside an error")
		}
		caps, err := parseCapabilities(text)
		if err == nil {
			caps.confines("apparmor")
		}
		if got, err := parseQEMUIDs(text); err != nil && got != (ids{}) {
			t.Error("ids beside an error")
		}
		if n, err := parseNetwork(text); err == nil {
			for _, l := range n.links {
				l.with(false)
			}
		}
		if all, err := parsePassed(text); err == nil {
			for i := range all {
				all[i].network("/nonexistent")
			}
		}
	})
}
