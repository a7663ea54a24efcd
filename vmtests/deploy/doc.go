// Package deploy holds the guest's package against a Debian that boots with
// systemd: it is installed into a root that does not run, comes up with the
// domain, is there again when it is killed, is replaced while it runs and goes
// without a trace. The same package for rpm is installed, replaced and removed in
// a root. The snippet for cloud-init is read, its script is run, and Debian's
// cloud-init is asked about it. `make test-deploy` runs what needs a root; it stands
// beside make test, whose guests have no systemd.
package deploy
