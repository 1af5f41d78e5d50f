// Package door proves that tickets are honest: whatever is done to the broker or to the connection, every
// 2xx has its record at the place it names, whoever was told that nothing was written finds nothing, an
// unknown outcome can be retried under its key, and the service recovers alone.
//
// Its broker is its own, because it is killed, stopped and cut off.
package door
