package postgres

import (
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// Array builds a one-dimensional array in Postgres's binary format (array_recv in the server's
// arrayfuncs.c), to be passed as a []byte parameter. Element types are given by OID.
type Array struct {
	buf   []byte
	count uint32
}

// Object ids of the element types (pg_type.dat).
const (
	oidBytea       = 17
	oidInt8        = 20
	oidText        = 25
	oidUUID        = 2950
	oidTimestamptz = 1184
)

const arrayHeader = 20

func newArray(oid uint32, capacity, width int) Array {
	buf := make([]byte, arrayHeader, arrayHeader+capacity*(4+width))
	binary.BigEndian.PutUint32(buf[0:], 1)   // dimensions
	binary.BigEndian.PutUint32(buf[4:], 1)   // may hold nulls
	binary.BigEndian.PutUint32(buf[8:], oid) // element type
	binary.BigEndian.PutUint32(buf[16:], 1)  // lower bound
	return Array{buf: buf}
}

// UUIDs starts a uuid[] with room for capacity elements.
func UUIDs(capacity int) Array { return newArray(oidUUID, capacity, 16) }

// Int8s starts a bigint[].
func Int8s(capacity int) Array { return newArray(oidInt8, capacity, 8) }

// Timestamps starts a timestamptz[].
func Timestamps(capacity int) Array { return newArray(oidTimestamptz, capacity, 8) }

// Texts starts a text[].
func Texts(capacity int) Array { return newArray(oidText, capacity, 32) }

// Byteas starts a bytea[].
func Byteas(capacity int) Array { return newArray(oidBytea, capacity, 64) }

// Bytes returns the array. It may be appended to afterwards; the earlier bytes are then no longer valid.
func (a *Array) Bytes() []byte {
	if a.count == 0 { // an empty array has no dimensions
		empty := make([]byte, 12)
		copy(empty[8:], a.buf[8:12])
		return empty
	}
	binary.BigEndian.PutUint32(a.buf[12:], a.count)
	return a.buf
}

// UUID appends to a uuid[].
func (a *Array) UUID(id uuid.UUID) {
	a.buf = append(binary.BigEndian.AppendUint32(a.buf, 16), id[:]...)
	a.count++
}

// Int8 appends to a bigint[].
func (a *Array) Int8(n int64) {
	a.buf = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(a.buf, 8), uint64(n))
	a.count++
}

var epoch2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Timestamp appends to a timestamptz[]: microseconds since 2000, digits past them cut.
func (a *Array) Timestamp(t time.Time) { a.Int8(t.UnixMicro() - epoch2000.UnixMicro()) }

// Bytea appends to a bytea[]; nil is NULL.
func (a *Array) Bytea(b []byte) {
	a.count++
	if b == nil {
		a.buf = binary.BigEndian.AppendUint32(a.buf, 0xffffffff)
		return
	}
	a.buf = append(binary.BigEndian.AppendUint32(a.buf, uint32(len(b))), b...)
}

// NullableText appends to a text[]; nil is NULL.
func (a *Array) NullableText(s []byte) { a.Bytea(s) }

// Text appends to a text[].
func (a *Array) Text(s string) {
	a.count++
	a.buf = append(binary.BigEndian.AppendUint32(a.buf, uint32(len(s))), s...)
}
