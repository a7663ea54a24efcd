// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// TestBookTypes: what is attached whatever the policy asks for is what the protocol
// says, and by which the host tells what a policy has left attached.
func TestBookTypes(t *testing.T) {
	always := []vsockproto.EventType{vsockproto.TaskSnapshot, vsockproto.CgroupSnapshot} // no hook's
	for _, h := range hooks {
		if h.event != 0 && h.serves.empty() {
			always = append(always, h.event)
		}
	}
	slices.Sort(always)
	if want := vsockproto.BookTypes(); !slices.Equal(always, want) {
		t.Errorf("always attached: %v; BookTypes: %v", always, want)
	}
}

// TestAlwaysAttachedIsTold: docs/CONFIG.md has a row for each program that no policy
// takes out, and for no other.
func TestAlwaysAttachedIsTold(t *testing.T) {
	doc, err := os.ReadFile("../../docs/CONFIG.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, ok := strings.Cut(string(doc), "\n# What is always attached\n")
	part, _, ok2 := strings.Cut(part, "\n# ")
	if !ok || !ok2 {
		t.Fatal("docs/CONFIG.md does not say what is always attached")
	}
	var told []string
	for line := range strings.Lines(part) {
		if row, ok := strings.CutPrefix(line, "| "); ok && strings.Contains(row, "_") {
			names, _, _ := strings.Cut(row, " |")
			told = append(told, strings.Split(names, ", ")...)
		}
	}
	slices.Sort(told)
	if always := alwaysAttached(); !slices.Equal(told, always) {
		t.Errorf("docs/CONFIG.md tells of %v, always attached: %v", told, always)
	}
}

// alwaysAttached names the programs that no policy takes out, sorted.
func alwaysAttached() (all []string) {
	for _, h := range hooks {
		if h.serves.empty() {
			all = append(all, h.program)
		}
	}
	slices.Sort(all)
	return all
}
