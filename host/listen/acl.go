package listen

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Entries of a POSIX ACL as an extended attribute. Source: linux/posix_acl_xattr.h
// and linux/posix_acl.h.
const (
	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclMask     = 0x10
	aclOther    = 0x20
	aclNobody   = ^uint32(0)
)

// welcomeUs makes what others create in dir ours to connect to: the sockets of
// the host's side of a hybrid vsock belong to QEMU's user. Their creator's umask
// bounds it: it has to leave the group its rights (umask 007).
func welcomeUs(dir string) error {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{aclUserObj, 7, aclNobody}, {aclUser, 7, uint32(os.Geteuid())},
		{aclGroupObj, 7, aclNobody}, {aclMask, 7, aclNobody}, {aclOther, 0, aclNobody},
	} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	if err := unix.Setxattr(dir, "system.posix_acl_default", b, 0); err != nil {
		return fmt.Errorf("let us reach the sockets in %s: %w", dir, err)
	}
	return nil
}
