// Package deploy holds the guest's package against a Debian that boots with
// systemd: it is installed into a root that does not run, comes up with the
// domain, is there again when it is killed, is replaced while it runs and goes
// without a trace. The same package for rpm is installed, replaced and removed in
// a root. `make test-deploy` runs it; it stands beside make test, whose
// guests have no systemd.
package deploy
