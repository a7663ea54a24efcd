// Package cli is the verbs of `outguard`.
//
// Most verbs ask the monitor over host/api's socket. Those that must work
// without one do not: enroll and unenroll speak to libvirt, bundle and evidence
// read files. docs/CLI.md is made from the commands themselves.
//
// Whatever is printed for people goes through host/api/safe: a guest chose some
// of it. --json prints one object a line, with nothing in it that would act on
// a terminal either.
package cli

// Exit codes.
const (
	ExitOK     = 0
	ExitError  = 1
	ExitUsage  = 2
	ExitVerify = 3 // something is not as it was written, or, with --exit-code, something was found
)
