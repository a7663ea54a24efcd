package product

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Manager is what systemd is to a service: it keeps the descriptors that the monitor
// leaves, and gives them to the next one (sd_notify(3), sd_listen_fds(3)).
type Manager struct {
	path string
	conn *net.UnixConn

	mu   sync.Mutex
	kept []*os.File // each has its name
}

// NewManager listens in a directory that the monitor's user can reach.
func NewManager(dir string) (*Manager, error) {
	m := &Manager{path: filepath.Join(dir, "notify")}
	if err := os.Remove(m.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		return nil, err
	}
	if err := os.Chmod(m.path, 0o666); err != nil {
		return nil, errors.Join(err, m.conn.Close())
	}
	go m.listen()
	return m, nil
}

// Close lets go of everything.
func (m *Manager) Close() error {
	err := m.conn.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.kept {
		err = errors.Join(err, f.Close())
	}
	m.kept = nil
	return err
}

func (m *Manager) listen() {
	b, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, o, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		m.take(string(b[:n]), oob[:o])
	}
}

func (m *Manager) take(text string, oob []byte) {
	var fds []int
	all, _ := syscall.ParseSocketControlMessage(oob)
	for i := range all {
		rights, _ := syscall.ParseUnixRights(&all[i])
		fds = append(fds, rights...)
	}
	_, name, _ := strings.Cut(text, "FDNAME=")
	name, _, _ = strings.Cut(name, "\n")
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
		m.kept = append(m.kept, os.NewFile(uintptr(fd), name))
	}
	if strings.HasPrefix(text, "FDSTOREREMOVE=1") {
		m.kept = slices.DeleteFunc(m.kept, func(f *os.File) bool {
			if f.Name() != name {
				return false
			}
			_ = f.Close()
			return true
		})
	}
}

// Kept are the names of what is kept.
func (m *Manager) Kept() (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.kept {
		names = append(names, f.Name())
	}
	return names
}

// prepare has a command that is not started yet be given what is kept.
func (m *Manager) prepare(cmd *exec.Cmd) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, len(m.kept))
	for i, f := range m.kept {
		names[i] = f.Name()
	}
	cmd.ExtraFiles = slices.Clone(m.kept)
	// The process that LISTEN_PID names is the one that is told.
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, cmd.Args...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path)
	if len(m.kept) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(m.kept)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
}
