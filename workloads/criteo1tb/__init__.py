"""Click prediction with DLRM on the Criteo 1 TB click logs."""
