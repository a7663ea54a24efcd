package tsem

import "fmt"

// Mapping says how events become points. Every model names its own. Numbers
// are never used again.
type Mapping uint8

const (
	Quixote Mapping = 1 // what Quixote's userspace computes
	Full    Mapping = 2 // docs/TSEM-FULL.md, the one of new models
)

var mappingNames = [...]string{Quixote: "quixote", Full: "full"}

func (m Mapping) String() string {
	if m.known() {
		return mappingNames[m]
	}
	return fmt.Sprintf("mapping(%d)", uint8(m))
}

func (m Mapping) known() bool { return m > 0 && int(m) < len(mappingNames) }

// ParseMapping finds the mapping of that name.
func ParseMapping(name string) (Mapping, error) {
	for m, n := range mappingNames {
		if n == name && m > 0 {
			return Mapping(m), nil
		}
	}
	return 0, fmt.Errorf("mapping %q: not one that this version has", name)
}
