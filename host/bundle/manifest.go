package bundle

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/evidence"
)

// Format is the version of the manifest that this package writes and reads.
const Format = 1

// Limits on what a manifest may hold.
const (
	MaxManifest = 4 << 20 // bytes
	MaxParts    = 16384
	maxPath     = 255
	maxText     = 256
	maxSig      = 4096
)

// Manifest says what a bundle holds.
type Manifest struct {
	Format   int            `json:"format"`
	Host     string         `json:"host"`
	VM       uuid.UUID      `json:"vm"`
	VMName   string         `json:"vm_name"`
	Finding  string         `json:"finding"`  // its id, "" for a capture that a person asked for
	Order    string         `json:"order"`    // the capture's
	Received time.Time      `json:"received"` // when the event's frame arrived on the host
	Created  time.Time      `json:"created"`  // when the bundle was
	Evidence evidence.Range `json:"evidence"`
	Parts    []Entry        `json:"parts"`
}

// Entry is one file of a bundle.
type Entry struct {
	Path   string        `json:"path"`
	Size   int64         `json:"size"`
	SHA256 evidence.Hash `json:"sha256"`
}

// ErrManifest is what every error about a manifest's content wraps.
var ErrManifest = errors.New("not a usable manifest")

// Append writes the manifest's one text.
func (m *Manifest) Append(b []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return append(append(b, text...), '\n'), nil
}

// ParseManifest reads exactly what Append writes and nothing else.
func ParseManifest(b []byte) (*Manifest, error) {
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrManifest, len(b), MaxManifest)
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	again, err := m.Append(nil)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, fmt.Errorf("%w: not in its canonical form", ErrManifest)
	}
	return &m, nil
}

func (m *Manifest) check() error {
	if m.Format != Format {
		return fmt.Errorf("%w: format %d, want %d", ErrManifest, m.Format, Format)
	}
	if len(m.Parts) == 0 || len(m.Parts) > MaxParts {
		return fmt.Errorf("%w: %d parts", ErrManifest, len(m.Parts))
	}
	for _, s := range []string{m.Host, m.VMName, m.Finding, m.Order} {
		if len(s) > maxText {
			return fmt.Errorf("%w: text of %d bytes", ErrManifest, len(s))
		}
	}
	before := ""
	for _, p := range m.Parts {
		if err := checkPath(p.Path); err != nil {
			return err
		}
		if p.Path <= before || p.Size < 0 {
			return fmt.Errorf("%w: part %q out of order, or of size %d", ErrManifest, p.Path, p.Size)
		}
		before = p.Path
	}
	return m.checkNesting()
}

// checkNesting refuses a path that is both a file and a directory.
func (m *Manifest) checkNesting() error {
	files := make(map[string]bool, len(m.Parts))
	for _, p := range m.Parts {
		files[p.Path] = true
	}
	for _, p := range m.Parts {
		for i, c := range p.Path {
			if c == '/' && files[p.Path[:i]] {
				return fmt.Errorf("%w: %q is a file and a directory", ErrManifest, p.Path[:i])
			}
		}
	}
	return nil
}

func checkPath(p string) error {
	ok := fs.ValidPath(p) && p != "." && len(p) <= maxPath && p != ManifestName && p != SigName
	for element := range strings.SplitSeq(p, "/") {
		ok = ok && !strings.HasPrefix(element, ".") && strings.Trim(element, nameChars) == ""
	}
	if !ok {
		return fmt.Errorf("%w: path %.300q", ErrManifest, p)
	}
	return nil
}

const nameChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

// signedText is what manifest.sig signs.
func signedText(manifest []byte) string {
	return fmt.Sprintf("outguard bundle v1\nmanifest sha256 %s\nsize %d\n",
		evidence.Hash(sha256.Sum256(manifest)), len(manifest))
}

// Name is the directory's name: <time>-<vm name>-<finding id>, each reduced to
// characters that are safe in a path.
func (m *Manifest) Name() string {
	return m.Created.UTC().Format("20060102T150405Z") + "-" + safe(m.VMName) + "-" + safe(cmp.Or(m.Finding, m.Order))
}

func safe(s string) string {
	s = strings.Map(func(r rune) rune {
		if strings.ContainsRune(nameChars, r) {
			return r
		}
		return '_'
	}, s)
	return s[:min(len(s), 64)]
}
