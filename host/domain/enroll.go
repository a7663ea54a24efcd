package domain

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
)

// EnrollOptions of Enroll and Unenroll; nil and zero mean the documented
// defaults.
type EnrollOptions struct {
	StateDir  string    // default /var/lib/outguard: enroll/ and keys/ are in it
	RunDir    string    // default /run/outguard
	Transport Transport // default: what the domain has; else KernelVsock where /dev/vhost-vsock is, VhostUser elsewhere
	User      string    // who may read the enrolment; default "outguard"
	QEMUUser  string    // who may read the key; default: whom libvirt runs QEMU as
	Sockets   string    // directory of the sockets: <domain>.vhost and .sock, or .serial; default RunDir/vsock
}

// plan is Enroll's work with its options resolved.
type plan struct {
	EnrollOptions
	owner, qemu ids
	// root is StateDir once prepare has opened it. It belongs to the monitor,
	// which must not make root write elsewhere by a link.
	root *os.Root
}

type ids struct{ uid, gid int }

// Enroll provisions a domain that is shut off: a channel for its agent, and a
// new one-time key that the guest reads from fw_cfg, as root only, and that
// only root and QEMU's user can read on the host. It is done as root. Done
// again it changes nothing but the key, which is a new one.
func (c *Client) Enroll(ctx context.Context, nameOrUUID string, opts *EnrollOptions) (*Enrolment, error) {
	e, err := c.enroll(ctx, nameOrUUID, opts)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	return e, nil
}

func (c *Client) enroll(ctx context.Context, nameOrUUID string, opts *EnrollOptions) (_ *Enrolment, err error) {
	d, text, err := c.inactive(ctx, nameOrUUID)
	if err != nil {
		return nil, err
	}
	p, err := c.plan(ctx, opts)
	if err != nil {
		return nil, err
	}
	unlock, err := p.prepare()
	if err != nil {
		return nil, err
	}
	defer unlock()
	before, err := p.enrolment(d)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; remove the file to enroll anew", err)
	}
	p.choose(before.Transport)
	e := &Enrolment{Version: 1, UUID: d.UUID, Name: d.Name, Transport: p.Transport, KeyFile: filepath.Join(p.StateDir, keyFile(d)), Enrolled: time.Now().UTC()}
	_, _ = rand.Read(e.Key[:]) // never fails
	if err := p.sockets(e); err != nil {
		return nil, err
	}
	defined, err := provision(text, e, &before)
	if err != nil {
		return nil, fmt.Errorf("domain %q: %w", d.Name, err)
	}
	if err := e.validate(); err != nil {
		return nil, err
	}
	if e.Socket != "" {
		if err := p.socketDir(filepath.Dir(e.Socket)); err != nil {
			return nil, err
		}
	}
	undo, err := p.store(e)
	if err != nil {
		return nil, err
	}
	if err := c.define(ctx, defined); err != nil {
		return nil, errors.Join(err, undo())
	}
	return e, nil
}

// Unenroll takes out of a domain that is shut off what Enroll put in, and
// removes its enrolment and its key. A domain that libvirt no longer knows is
// forgotten by its UUID.
func (c *Client) Unenroll(ctx context.Context, nameOrUUID string, opts *EnrollOptions) error {
	if err := c.unenroll(ctx, nameOrUUID, opts); err != nil {
		return fmt.Errorf("unenroll: %w", err)
	}
	return nil
}

func (c *Client) unenroll(ctx context.Context, nameOrUUID string, opts *EnrollOptions) error {
	p, err := c.plan(ctx, opts)
	if err != nil {
		return err
	}
	unlock, err := p.prepare()
	if err != nil {
		return err
	}
	defer unlock()
	d, text, err := c.inactive(ctx, nameOrUUID)
	if errors.Is(err, ErrNotFound) {
		return p.forget(nameOrUUID, err)
	}
	if err != nil {
		return err
	}
	before, err := p.enrolment(d)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	bare, err := strip(text, &before)
	if err != nil {
		return fmt.Errorf("domain %q: %w", d.Name, err)
	}
	if err := c.define(ctx, bare); err != nil {
		return err
	}
	return p.remove(d)
}

// enrolment reads what is there of a domain.
func (p *plan) enrolment(d Domain) (Enrolment, error) {
	f, err := p.root.OpenFile(file(d), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Enrolment{}, err
	}
	defer f.Close()
	return readFile(f)
}

// forget removes what is left of a domain that is no more.
func (p *plan) forget(nameOrUUID string, cause error) error {
	all, _ := Enrolments(p.dir())
	for _, e := range all {
		if e.Name == nameOrUUID || e.UUID.String() == nameOrUUID {
			return p.remove(Domain{UUID: e.UUID})
		}
	}
	return cause
}

func (p *plan) remove(d Domain) error {
	var errs []error
	for _, path := range []string{file(d), keyFile(d)} {
		if err := p.root.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// inactive returns a domain that is shut off and its description, secrets
// included: it is to be defined again.
func (c *Client) inactive(ctx context.Context, nameOrUUID string) (Domain, string, error) {
	d, err := c.Lookup(ctx, nameOrUUID)
	if err != nil {
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("%w; `virsh list --all` shows what there is", err)
		}
		return Domain{}, "", err
	}
	if d.State.Active() {
		return Domain{}, "", fmt.Errorf("domain %q: %w; shut it down first: `virsh shutdown %s`", d.Name, ErrRunning, d.Name)
	}
	text, err := c.xml(ctx, d.UUID, libvirt.DomainXMLInactive|libvirt.DomainXMLSecure)
	return d, text, err
}

func (c *Client) define(ctx context.Context, text string) error {
	err := c.call(ctx, &c.lines[0], func(l *libvirt.Libvirt) error {
		_, err := l.DomainDefineXMLFlags(text, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("define: %w", err)
	}
	return nil
}

// plan resolves the options.
func (c *Client) plan(ctx context.Context, opts *EnrollOptions) (*plan, error) {
	p := &plan{}
	if opts != nil {
		p.EnrollOptions = *opts
	}
	for _, d := range []struct {
		at    *string
		value string
	}{{&p.StateDir, "/var/lib/outguard"}, {&p.RunDir, "/run/outguard"}, {&p.User, "outguard"}} {
		if *d.at == "" {
			*d.at = d.value
		}
	}
	if p.Sockets == "" {
		p.Sockets = filepath.Join(p.RunDir, "vsock")
	}
	if p.Transport != "" && !slices.Contains(Transports, p.Transport) {
		return nil, fmt.Errorf("transport %q is none of vsock, vhost-user, serial", p.Transport)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: run it as root: it writes %s and files of other users", ErrPermission, p.StateDir)
	}
	var err error
	if p.owner, err = userIDs(p.User); err != nil {
		return nil, fmt.Errorf("%w; make it: `useradd --system --no-create-home --groups libvirt %s`", err, p.User)
	}
	if p.QEMUUser != "" {
		p.qemu, err = userIDs(p.QEMUUser)
	} else {
		p.qemu, err = c.qemuIDs(ctx)
	}
	return p, err
}

// choose settles on a transport: the one that was asked for, that the domain has,
// or that this host offers.
func (p *plan) choose(has Transport) {
	if p.Transport != "" {
		return
	}
	if p.Transport = has; has != "" {
		return
	}
	p.Transport = VhostUser
	if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
		p.Transport = KernelVsock
	}
}

func userIDs(name string) (ids, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return ids{}, err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return ids{uid, gid}, errors.Join(err1, err2)
}

// qemuIDs asks libvirt as whom it runs QEMU.
func (c *Client) qemuIDs(ctx context.Context) (ids, error) {
	text, err := c.capabilities(ctx)
	if err != nil {
		return ids{}, fmt.Errorf("ask libvirt for QEMU's user: %w", err)
	}
	return parseQEMUIDs(text)
}

func parseQEMUIDs(text string) (ids, error) {
	caps, err := parseCapabilities(text)
	if err != nil {
		return ids{}, err
	}
	for _, m := range caps.Models {
		for _, label := range m.Labels {
			var got ids
			if m.Model != "dac" {
				continue
			}
			if _, err := fmt.Sscanf(label, "+%d:+%d", &got.uid, &got.gid); err == nil {
				return got, nil
			}
		}
	}
	return ids{}, errors.New("libvirt does not say as whom it runs QEMU; name the user")
}

const (
	enrollDir = "enroll"
	keysDir   = "keys"
)

// file and keyFile are a domain's files in the state directory.
func file(d Domain) string    { return filepath.Join(enrollDir, d.UUID.String()+".json") }
func keyFile(d Domain) string { return filepath.Join(keysDir, d.UUID.String()+".key") }

func (p *plan) dir() string { return filepath.Join(p.StateDir, enrollDir) }

// prepare makes the directories and takes the lock, so that one enrolment is
// made at a time.
func (p *plan) prepare() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(p.StateDir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.StateDir, 0o711); err == nil {
		err = errors.Join(os.Chown(p.StateDir, p.owner.uid, p.owner.gid), os.Chmod(p.StateDir, 0o711))
		if err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if p.root, err = os.OpenRoot(p.StateDir); err != nil {
		return nil, err
	}
	lock, err := p.lock()
	if err != nil {
		return nil, errors.Join(err, p.root.Close())
	}
	return func() { _, _ = lock.Close(), p.root.Close() }, nil
}

func (p *plan) lock() (*os.File, error) {
	if err := errors.Join(p.directory(enrollDir, 0o700, p.owner), p.directory(keysDir, 0o711, ids{})); err != nil {
		return nil, err
	}
	if err := reachable(filepath.Join(p.StateDir, keysDir)); err != nil {
		return nil, err
	}
	f, err := p.root.OpenFile(filepath.Join(keysDir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return f, nil
}

// directory makes one that is missing, as its owner's; one that is there is
// left as it is.
func (p *plan) directory(name string, mode fs.FileMode, owner ids) error {
	err := p.root.Mkdir(name, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(p.root.Chown(name, owner.uid, owner.gid), p.root.Chmod(name, mode))
}

// sockets fills in what a channel over sockets needs. A guest is known by them, so
// that no two domains have the same.
func (p *plan) sockets(e *Enrolment) error {
	base := filepath.Join(p.Sockets, fileName(e))
	switch p.Transport {
	case KernelVsock:
		return nil
	case Serial:
		e.Socket = base + ".serial"
	default:
		e.Vhost, e.Socket = base+".vhost", base+".sock"
	}
	all, _ := Enrolments(p.dir()) // a broken one holds no address that could be known
	taken := map[uint32]bool{0: true, 1: true, 2: true}
	for i := range all {
		switch o := &all[i]; {
		case o.UUID == e.UUID:
			e.CID = o.CID
		case o.Socket == e.Socket || o.Vhost == e.Vhost && e.Vhost != "":
			return fmt.Errorf("the sockets of %q are %s already", o.Name, strings.TrimSpace(o.Vhost+" "+o.Socket))
		default:
			taken[o.CID] = true
		}
	}
	if p.Transport == Serial {
		e.CID = 0
		return nil
	}
	for cid := uint32(3); taken[e.CID]; cid++ {
		e.CID = cid
	}
	return nil
}

// fileName is the domain's name where a socket can bear it, else its UUID.
func fileName(e *Enrolment) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)
	}
	if len(e.Name) > 48 || strings.HasPrefix(e.Name, ".") || strings.ContainsFunc(e.Name, func(r rune) bool { return !plain(r) }) {
		return e.UUID.String()
	}
	return e.Name
}
