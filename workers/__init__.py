"""The lower wing: what runs beside a GPU, and the words spoken across the boundary."""
