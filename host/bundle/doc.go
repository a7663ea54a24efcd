// Package bundle packs one violation for an analyst: the evidence around it,
// the guest's memory and disks, and a signed manifest that names every byte.
//
// A bundle is a directory <time>-<vm name>-<finding id>:
//
//	manifest.json    what is here: each file's size and SHA-256, the evidence's range
//	manifest.sig     signed note of the host's key over the manifest's exact bytes
//	host.pub         that key, for convenience; who verifies brings his own copy
//	host.keys        which keys it succeeded, signed by them: his copy may be one of those
//	evidence/        a range of the VM's stream, in evidence's own format
//	timeline.txt     what happened when, for people
//	timeline.json    the same for programs
//	report.html      all of it on one page, which needs nothing else and runs nothing
//	tree.txt         who made whom in the guest; tree.json the same for programs
//	findings.json    what was found around it; decisions.json what the playbook said of that
//	events.jsonl     the VM's events before and after, one a line, as outguard events --json
//	registers.json   of every vCPU, out of memory.elf; vmcoreinfo.txt where the guest has left it
//	console.log      the end of the console's file; screen.png the display
//	finding.json  orders.json  domain.xml  memory.elf  disks/… as the capture gave them
//
// It is written under a temporary name and renamed when it is whole. The text
// that manifest.sig signs is
//
//	outguard bundle v1
//	manifest sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//	size 2048
//
// manifest.json is the one JSON text that this package would write for its
// content. Every other file in the directory is named in it: one that is not,
// an empty directory, a link or a device is an error of Verify. Names are
// relative slash paths of letters, digits and "._-", no element starting with a
// dot, in ascending order.
//
// In one file it is a tar, compressed by zstd, and encrypted by age where it has
// recipients: see Pack. The host keeps one with a label, which says what is in it:
// see Archive and LabelSuffix.
package bundle

import "github.com/outguard/outguard/host/evidence"

// Names of the parts that are not the caller's to choose, and of those that
// every capture calls the same.
const (
	ManifestName = "manifest.json"
	SigName      = "manifest.sig"

	PubPart          = "host.pub"
	KeysPart         = evidence.KeysFile
	EvidencePart     = "evidence" // a directory
	TimelineTextPart = "timeline.txt"
	TimelineJSONPart = "timeline.json"
	PagePart         = "report.html"
	TreeTextPart     = "tree.txt"
	TreeJSONPart     = "tree.json"
	FindingPart      = "finding.json"
	FindingsPart     = "findings.json"
	DecisionsPart    = "decisions.json"
	EventsPart       = "events.jsonl"
	OrdersPart       = "orders.json"
	RegistersPart    = "registers.json"
	VMCoreInfoPart   = "vmcoreinfo.txt"
	ConsolePart      = "console.log"
	ScreenPart       = "screen.png"
	DomainPart       = "domain.xml"
	MemoryPart       = "memory.elf"
	DisksPart        = "disks" // a directory
)
